"""How `Rainbow` learns, in plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.type_aliases import Schedule

from nap_rl.machine import available_memory
from nap_rl.replay import Replay
from nap_rl.sb3.observations import Observations


@dataclass(frozen=True)
class Settings:
    """The names are SB3's where SB3 has the thing; these values are those of CnnPolicy (dqn_zoo's Rainbow).

    Attributes:
        learning_rate: a number, or a function of the progress remaining (1 to 0).
        buffer_size: transitions in the replay, over all environments.
        learning_starts: transitions before the first update; actions are uniformly random until then.
        batch_size: transitions an update.
        gamma, n_steps: discount and length of the n-step returns.
        train_freq, gradient_steps: so many updates every `train_freq` transitions, counted over all environments.
            (SB3 counts steps of the vector, and so makes fewer updates with more environments.)
        target_update_interval: transitions between two copies into the target network.
        exploration_initial_eps, exploration_final_eps, exploration_fraction: random actions, beside the noise.
        max_grad_norm: global gradient norm to clip to; None for none.
        reward_clip: rewards are clipped to [-c, c] when sampled; None leaves them.
        priority_exponent, uniform_probability: see `nap_rl.replay.Priorities`.
        importance_initial, importance_final: importance exponent, over the whole of `learn`.
        adam_eps: epsilon of Adam.
    """

    learning_rate: float | Schedule = 6.25e-5
    buffer_size: int = 1_000_000
    learning_starts: int = 20_000
    batch_size: int = 32
    gamma: float = 0.99
    n_steps: int = 3
    train_freq: int = 4
    gradient_steps: int = 1
    target_update_interval: int = 8_000
    exploration_initial_eps: float = 0.0
    exploration_final_eps: float = 0.0
    exploration_fraction: float = 0.1
    max_grad_norm: float | None = 10.0
    reward_clip: float | None = 1.0
    priority_exponent: float = 0.5
    uniform_probability: float = 1e-3
    importance_initial: float = 0.4
    importance_final: float = 1.0
    adam_eps: float = 1.5625e-4

    def plain(self) -> dict[str, Any]:
        """JSON-ready; a learning rate that is a function is left out."""
        values = asdict(self)
        if callable(self.learning_rate):
            del values["learning_rate"]
        return values


# CartPole's scale: small networks, quick copies, raw rewards.
VECTORS = Settings(
    learning_rate=5e-4,
    buffer_size=100_000,
    learning_starts=1_000,
    batch_size=64,
    train_freq=2,
    target_update_interval=500,
    reward_clip=None,
)
DEFAULTS = {"CnnPolicy": Settings(), "MlpPolicy": VECTORS, "MultiInputPolicy": VECTORS}
# Name -> least and largest value; whole numbers where the default is one.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("buffer_size", "batch_size", "train_freq", "gradient_steps", "target_update_interval"), (1, 1e12)),
    "n_steps": (1, 1_000),
    "learning_starts": (0, 1e12),
    "learning_rate": (0.0, 1.0),
    "max_grad_norm": (0.0, 1e30),
    "reward_clip": (0.0, 1e30),
    "priority_exponent": (0.0, 10.0),
    "exploration_fraction": (1e-9, 1.0),
    "adam_eps": (0.0, 1.0),
}
UNIT = (0.0, 1.0)  # of all others


def make_settings(policy: str, values: Mapping[str, Any]) -> Settings:
    """The defaults of a policy with other values for some.

    Raises:
        ValueError: an unknown name, or a value of another type or out of its range; one sentence.
    """
    known = [field.name for field in fields(Settings)]
    values = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"Rainbow has no setting '{name}', expected some of {', '.join(known)}")
        if (name == "learning_rate" and callable(value)) or (
            name in ("max_grad_norm", "reward_clip") and value is None
        ):
            continue
        low, high = RANGES.get(name, UNIT)
        whole = type(getattr(Settings, name)) is int
        if type(value) not in ((int,) if whole else (int, float)) or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            raise ValueError(f"{name}={value!r:.60}, expected {kind} in [{low:g}, {high:g}]")
    return replace(DEFAULTS[policy], **values)


def make_replay(
    settings: Settings,
    capacity: int,
    num_envs: int,
    observations: Observations,
    seed: int,
    device: torch.device,
) -> Replay:
    """An empty replay; ValueError where it would not fit the memory that is free."""
    frame_bytes = math.prod(observations.frame_shape) * observations.dtype.itemsize
    needed, available = Replay.nbytes(capacity, frame_bytes), available_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"buffer_size={capacity} needs {needed / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are free"
        )
    return Replay(
        capacity,
        num_envs,
        frame_shape=observations.frame_shape,
        frame_dtype=observations.torch_dtype,
        stack=observations.stack,
        n_steps=settings.n_steps,
        discount=settings.gamma,
        reward_clip=settings.reward_clip,
        exponent=settings.priority_exponent,
        uniform_probability=settings.uniform_probability,
        seed=seed,
        device=device,
    )
