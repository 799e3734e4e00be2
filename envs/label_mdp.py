"""A label MDP: an image is the state, its hidden label the right action. The RL twin of the random-label study."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from nap_rl.envs.random_mdp import Image, digits


class LabelMdp(gymnasium.Env[Image, np.int64]):
    """Name the label of each image; the next image is drawn uniformly, whatever the action.

    Labels are drawn uniformly from `task_seed` and have nothing to do with what the images show. Observations [8, 8]
    float32 as in `RandomMdp`. Reward 1 for the label, else 0; an episode is truncated after `length` steps. A policy
    that knows a share p of the labels earns p * length.

    Attributes:
        images: [S, 8, 8].
        labels: [S], the right actions.

    Raises:
        FileNotFoundError: scikit-learn, which ships the digits, is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self, states: int = 256, actions: int = 10, length: int = 50, task_seed: int = 0, root: str | None = None
    ) -> None:
        if states < 1 or actions < 1 or length < 1:
            raise ValueError(
                f"a label MDP of {states} states, {actions} actions and {length} steps: expected 1 or more of each"
            )
        self.images: Image = digits(states, root)
        self.labels = np.random.default_rng(task_seed).integers(actions, size=states)
        self.length = length
        self.observation_space = gymnasium.spaces.Box(
            float(self.images.min()), float(self.images.max()), self.images.shape[1:], np.float32
        )
        self.action_space = gymnasium.spaces.Discrete(actions)
        self._state = self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Image, dict[str, Any]]:
        """An image drawn from the seed's stream."""
        super().reset(seed=seed)
        self._state, self._steps = int(self.np_random.integers(len(self.images))), 0
        return self.images[self._state].copy(), {}

    def step(self, action: np.int64) -> tuple[Image, float, bool, bool, dict[str, Any]]:
        """One answer; nothing terminates."""
        reward = float(action == self.labels[self._state])
        self._state = int(self.np_random.integers(len(self.images)))
        self._steps += 1
        return self.images[self._state].copy(), reward, False, self._steps >= self.length, {}
