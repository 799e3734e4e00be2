"""SB3's zips as agents of ours: DQN and QR-DQN (sb3-contrib) exactly, and `nap_rl.sb3.Rainbow`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nap_rl.agents import Diverged, ValueAgent
from nap_rl.replay import Replay
from nap_rl.sb3.archive import naming, with_suffix
from nap_rl.sb3.learning import learning
from nap_rl.sb3.model import Model, read_model
from nap_rl.sb3.observations import NotFinite

__all__ = ["LoadedPolicy", "Model", "load", "read_model"]


@dataclass
class LoadedPolicy:
    """An SB3 policy that can act, as SB3's do, and learn on, as ours do: `agent`."""

    agent: ValueAgent
    model: Model
    exploration_rate: float
    steps: int = 0
    """Calls of `predict`."""

    def predict(
        self,
        observation: Any,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = True,
    ) -> tuple[npt.NDArray[np.int64], tuple[npt.NDArray[Any], ...] | None]:
        """Actions [N] (0-dim for one observation) and `state` as it came: there is no recurrence.

        Args:
            observation: [*shape] or [N, *shape]; images with their channels first or last, the newest frame last.
            episode_start: not needed.
            deterministic: greedy and without noise; else epsilon-greedy with the rate that was saved, under noise.

        Raises:
            Diverged: the observation has NaN or infinity in it.
            ValueError: it has another shape.
        """
        del episode_start
        self.steps += 1
        try:
            stacks, batched = self.model.observations.encode(observation)
        except NotFinite as error:
            raise Diverged(f"diverged at step {self.steps}: {error}") from None
        epsilon = 0.0 if deterministic else self.exploration_rate
        actions = self.agent.act(stacks, epsilon, noisy=not deterministic)
        return (actions if batched else actions.reshape(())), state


def load(
    path: str | Path, *, capacity: int = 100_000, num_envs: int = 1, device: torch.device | str = "cpu"
) -> LoadedPolicy:
    """An SB3 zip as a policy, and as an agent that learns on with the settings of the zip.

    Settings that cannot be taken are named in a warning each, and never keep the policy from acting.

    Args:
        path: written by DQN, sb3-contrib's QRDQN or `nap_rl.sb3.Rainbow`, CnnPolicy or MlpPolicy; as in SB3, with or
            without ".zip".
        capacity, num_envs: of the agent's replay, which starts empty (SB3 keeps none in a zip).
        device: of the agent.

    Raises:
        FileNotFoundError: there is no such file.
        ZipError: the zip is damaged or hostile, or its policy cannot act here; one sentence.
    """
    model = read_model(with_suffix(path))
    with naming(model.path):
        settings = learning(model.archive, model.algorithm, model.spec.pixels, model.adam)
        network = model.build().to(device)
        replay = Replay(
            capacity,
            num_envs,
            frame_shape=model.frame_shape,
            frame_dtype=model.observations.torch_dtype,
            stack=model.stack,
            n_steps=settings.n_steps,
            discount=settings.discount,
            reward_clip=settings.reward_clip,
            exponent=settings.priority_exponent,
            uniform_probability=settings.uniform_probability,
            device=device,
        )
        agent = ValueAgent(
            network,
            model.optimizer(network),
            replay,
            double=model.algorithm == "Rainbow",
            batch_size=settings.batch_size,
            target_every_updates=settings.target_every_updates,
            tau=settings.tau,
            max_grad_norm=settings.max_grad_norm,
        )
        agent.target.load_state_dict(model.target)
        agent.updates = settings.updates
    return LoadedPolicy(agent, model, settings.exploration_rate)
