"""Small random environments whose observations say which episode and which step they are of."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

ID = "tests/Random-v0"


class RandomEnv(gymnasium.Env[Any, Any]):
    """Episodes of random length that terminate or are truncated; an observation is a hash of all that went before."""

    def __init__(
        self, shape: tuple[int, ...] = (3,), dtype: str = "float32", actions: int = 3, longest: int = 6
    ) -> None:
        kind = np.dtype(dtype)
        self.observation_space = gymnasium.spaces.Box(0, 100, tuple(shape), kind.type)
        self.action_space = gymnasium.spaces.Discrete(actions, start=2)
        self.longest = longest

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, self.longest + 1))
        self.terminates = bool(self.np_random.random() < 0.5)
        self.history = [int(self.np_random.integers(1 << 30))]
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.history.append(int(action))
        self.left -= 1
        over = self.left == 0
        reward = float(np.random.default_rng(self.history).normal())
        return self._observation(), reward, over and self.terminates, over and not self.terminates, {}

    def _observation(self) -> Any:
        space = self.observation_space
        assert isinstance(space, gymnasium.spaces.Box)
        return np.random.default_rng(self.history).integers(0, 100, space.shape).astype(space.dtype)


def register() -> None:
    """Make `ID` known to gymnasium."""
    if ID not in gymnasium.registry:
        gymnasium.register(ID, entry_point=RandomEnv)
