"""How `Rainbow` learns, in plain values, and what it makes of an environment's observations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

from nap_rl.machine import available_memory
from nap_rl.replay import Replay

# Wrappers through which an observation comes as it is, or with its channels moved to the front.
TRANSPARENT = (VecTransposeImage, VecMonitor, VecCheckNan, VecVideoRecorder)


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
DEFAULTS = {
    "CnnPolicy": Settings(),
    "MlpPolicy": Settings(
        learning_rate=5e-4,
        buffer_size=100_000,
        learning_starts=1_000,
        batch_size=64,
        train_freq=2,
        target_update_interval=500,
        reward_clip=None,
    ),
}
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


def plain_box(space: spaces.Box) -> dict[str, Any]:
    """For JSON; `box` is the inverse. An end that is the same everywhere is one number."""
    ends = {"low": space.low, "high": space.high}
    plain = {n: end.flat[0].item() if (end == end.flat[0]).all() else end.tolist() for n, end in ends.items()}
    return {**plain, "shape": list(space.shape), "dtype": str(space.dtype)}


def box(plain: Mapping[str, Any]) -> spaces.Box:
    """From values that nobody vouches for; ValueError, TypeError or KeyError where they are no Box."""
    shape, dtype = plain["shape"], np.dtype(plain["dtype"])
    if dtype.kind not in "iuf" or math.prod(shape) > 1 << 24:
        raise ValueError(f"observations of {math.prod(shape)} values of type {dtype} are none that are read here")
    low, high = (np.broadcast_to(np.array(plain[end], dtype), shape) for end in ("low", "high"))
    return spaces.Box(low, high, dtype=dtype.type)


def make_replay(
    settings: Settings,
    capacity: int,
    num_envs: int,
    stack: int,
    frame_shape: tuple[int, ...],
    pixels: bool,
    seed: int,
    device: torch.device,
) -> Replay:
    """An empty replay; ValueError where it would not fit the memory that is free."""
    dtype = torch.uint8 if pixels else torch.float32
    needed, available = Replay.nbytes(capacity, math.prod(frame_shape) * dtype.itemsize), available_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"buffer_size={capacity} needs {needed / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are free"
        )
    return Replay(
        capacity,
        num_envs,
        frame_shape=frame_shape,
        frame_dtype=dtype,
        stack=stack,
        n_steps=settings.n_steps,
        discount=settings.gamma,
        reward_clip=settings.reward_clip,
        exponent=settings.priority_exponent,
        uniform_probability=settings.uniform_probability,
        seed=seed,
        device=device,
    )


def frame_layout(env: VecEnv, images: bool) -> tuple[int, tuple[int, ...]]:
    """(stack, frame_shape): how many frames an observation is made of, and the shape of one.

    More than one only for a VecFrameStack of images or of vectors; what other wrappers stack is one observation. Images
    have their channels first, and no channel axis where they have one channel.

    Args:
        images: whether the observations are to be images.

    Raises:
        ValueError: observations that Rainbow cannot take; one sentence.
    """
    space = env.observation_space
    if not isinstance(space, spaces.Box):
        raise ValueError(f"the observations are {type(space).__name__}, expected a Box")
    if images and not is_image_space(space):
        raise ValueError(f"CnnPolicy needs images (uint8, 3 dimensions), but observations are {space}: use MlpPolicy")
    stack, below = 1, env
    while isinstance(below, VecEnvWrapper):
        if isinstance(below, VecNormalize):
            raise ValueError("VecNormalize is not supported: its view of an observation changes while that is stored")
        if isinstance(below, VecFrameStack) and (images or len(space.shape) == 1):
            stack = below.stacked_obs.n_stack
            break
        if not isinstance(below, TRANSPARENT):
            break
        below = below.venv
    if images and space.shape[0] == stack:
        return stack, space.shape[1:]
    return stack, (space.shape[0] // stack, *space.shape[1:])
