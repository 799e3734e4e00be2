"""The newest observations of each environment, stacked for the network that acts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nap_rl.envs.step import Flags, Observations, VectorEnv


class FrameStack:
    """stacks [N, C, *shape], oldest observation first; zeros before an episode's first, as in the replay.

    Args:
        num_envs, stack, shape, dtype: N, C, and shape and dtype of one observation.
    """

    def __init__(self, num_envs: int, stack: int, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> None:
        self.stacks: npt.NDArray[Any] = np.zeros((num_envs, stack, *shape), dtype=dtype)

    @classmethod
    def of(cls, env: VectorEnv) -> FrameStack:
        """A stack for the observations of `env`."""
        return cls(env.num_envs, env.stack, env.observation_shape, env.observation_dtype)

    def push(self, observations: Observations, first: Flags) -> npt.NDArray[Any]:
        """Append observations [N, *shape]; where `first` [N], forget the earlier ones. Returns the stacks, no copy."""
        self.stacks[:, :-1] = self.stacks[:, 1:]
        self.stacks[first] = 0
        self.stacks[:, -1] = observations
        return self.stacks
