"""`agent.init_from=model.zip`: a new run that begins where Stable-Baselines3 left off.

SB3 is imported where a zip is given, and by no other run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from nap_rl.agents import FrameStack, ValueAgent
from nap_rl.envs import SequentialAtari
from nap_rl.nn import QNetwork

STACK = 4
RANDOM_SHARE = 0.1  # of the actions by which observations are gathered
OBSERVATIONS = 1_000


def initialize(source: str, network: QNetwork, make_env: Callable[[], SequentialAtari]) -> None:
    """Copy a zip's weights into a new network, and warn of all in which it is not the zip's.

    Raises:
        OSError, ValueError: there is no sound zip, or it does not fit even in the torso.
    """
    from nap_rl.sb3 import transfer
    from nap_rl.sb3.load import read_model

    model = read_model(source)
    try:
        fit = transfer.initialize(model, network)
    except ValueError as error:
        raise ValueError(f"agent.init_from={source}: {error}") from None
    difference = transfer.describe(model, network, fit, lambda before: real_stacks(make_env(), before))
    if difference is not None:
        warnings.warn(f"agent.init_from={source}: {difference}", stacklevel=3)


def continue_learning(source: str, agent: ValueAgent) -> None:
    """The target network and Adam's moments as well, where the agent's network is the zip's."""
    from nap_rl.sb3 import transfer
    from nap_rl.sb3.load import read_model

    model = read_model(source)
    if transfer.initialize(model, agent.network).exact:
        transfer.continue_learning(model, agent)


@torch.no_grad()
def real_stacks(env: SequentialAtari, network: QNetwork) -> npt.NDArray[np.uint8]:
    """Observations [1000, 4, 84, 84] of `env`, acted in greedily but for every tenth action; closes it."""
    rng = np.random.default_rng(0)
    stack, frames, first = FrameStack(env.num_envs, STACK), env.reset(), np.ones(env.num_envs, dtype=bool)
    seen: list[npt.NDArray[np.uint8]] = []
    while len(seen) * env.num_envs < OBSERVATIONS:
        seen.append(stack.push(frames, first).copy())
        actions = network.q_values(torch.from_numpy(seen[-1])).argmax(dim=1).numpy()
        random = rng.random(env.num_envs) < RANDOM_SHARE
        step = env.step(np.where(random, rng.integers(0, env.num_actions, env.num_envs), actions))
        frames, first = step.frames, step.ended
    env.close()
    return np.concatenate(seen)[:OBSERVATIONS]
