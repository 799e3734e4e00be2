"""A random MDP whose states are images of digits: transitions and rewards are a table drawn for each task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt

from nap_rl.images import load_images

Image = npt.NDArray[np.float32]
Table = npt.NDArray[np.float64]  # [S, A]
IMAGES_SEED = 0  # the same images in every task: only what they mean is drawn anew


class Rules(NamedTuple):
    """A deterministic MDP."""

    next_states: npt.NDArray[np.int64]  # [S, A]
    rewards: Table


def draw_rules(states: int, actions: int, task_seed: int) -> Rules:
    """next_states uniform over all states, rewards uniform in [-1, 1]: random actions earn 0 on average."""
    rng = np.random.default_rng(task_seed)
    return Rules(rng.integers(states, size=(states, actions)), rng.uniform(-1.0, 1.0, (states, actions)))


def optimal_values(rules: Rules, discount: float) -> Table:
    """q*[S, A] by value iteration: q(s, a) = r(s, a) + discount * max_b q(s', b), to 1e-9."""
    q = np.zeros_like(rules.rewards)
    while True:
        updated: Table = rules.rewards + discount * q.max(axis=1)[rules.next_states]
        if np.abs(updated - q).max() * discount <= 1e-9 * (1.0 - discount):
            return updated
        q = updated


def policy_value(rules: Rules, actions: npt.NDArray[np.int64], discount: float) -> float:
    """Discounted return of actions [S] from a uniformly drawn state, exact: v = (I - discount * P)^-1 r."""
    states = np.arange(len(actions))
    transitions = np.zeros((len(actions), len(actions)))
    transitions[states, rules.next_states[states, actions]] = 1.0
    values = np.linalg.solve(np.eye(len(actions)) - discount * transitions, rules.rewards[states, actions])
    return float(values.mean())


def share_of_optimum(rules: Rules, actions: npt.NDArray[np.int64], discount: float) -> float:
    """`policy_value` of actions [S] over value iteration's: 1 is optimal, random actions get about 0."""
    best = optimal_values(rules, discount).argmax(axis=1)
    return policy_value(rules, actions, discount) / policy_value(rules, best, discount)


class RandomMdp(gymnasium.Env[Image, np.int64]):
    """Walk through `states` images under `draw_rules(states, actions, task_seed)`.

    Observations [8, 8] float32: a digit of scikit-learn, over all states mean 0 and variance 1. An episode begins in a
    random state and is truncated after `length` steps.

    Attributes:
        images: [S, 8, 8], the observation of each state.
        rules: transitions and rewards.

    Raises:
        FileNotFoundError: scikit-learn, which ships the digits, is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self, states: int = 64, actions: int = 10, length: int = 50, task_seed: int = 0, root: str | None = None
    ) -> None:
        if states < 1 or actions < 1 or length < 1:
            raise ValueError(
                f"a random MDP of {states} states, {actions} actions and {length} steps: expected 1 or more of each"
            )
        self.images: Image = digits(states, root)
        self.rules = draw_rules(states, actions, task_seed)
        self.length = length
        self.observation_space = gymnasium.spaces.Box(
            float(self.images.min()), float(self.images.max()), self.images.shape[1:], np.float32
        )
        self.action_space = gymnasium.spaces.Discrete(actions)
        self._state = self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Image, dict[str, Any]]:
        """A state drawn from the seed's stream."""
        super().reset(seed=seed)
        self._state, self._steps = int(self.np_random.integers(len(self.images))), 0
        return self.images[self._state].copy(), {}

    def step(self, action: np.int64) -> tuple[Image, float, bool, bool, dict[str, Any]]:
        """One transition; nothing terminates."""
        reward = float(self.rules.rewards[self._state, action])
        self._state = int(self.rules.next_states[self._state, action])
        self._steps += 1
        return self.images[self._state].copy(), reward, False, self._steps >= self.length, {}


def digits(count: int, root: str | None = None) -> Image:
    """[count, 8, 8]: the same digits in every task; `root` is a folder to read them from, see `load_images`."""
    images: Image = load_images("digits", None if root is None else Path(root), count, IMAGES_SEED).numpy()[:, 0]
    return images
