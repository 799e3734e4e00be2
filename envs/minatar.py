"""MinAtar's five games (Young & Tian 2019, arXiv 1903.03176) with one shape and one action set.

The package `minatar` is optional: `pip install --no-deps minatar==1.0.15`.
"""

from __future__ import annotations

import logging
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
SHAPE = (10, 10, 10)  # row, column, channel; seaquest has 10 channels, the others 4 to 7
ACTIONS = 6  # nothing, left, up, right, down, fire
INSTALL = "pip install --no-deps minatar==1.0.15"

State = npt.NDArray[np.int8]


class MinAtar(gymnasium.Env[State, np.int64]):
    """One of `GAMES`: observations [10, 10, 10] int8, 0 or 1 (row, column, channel), all 6 actions, raw rewards.

    Channels that a game does not have are 0. An episode begun with a seed is a function of the seed and its
    actions.

    Args:
        game: one of `GAMES`.
        sticky_actions: probability that the previous action is repeated.
        difficulty_ramping: whether the games that have it grow harder within an episode.

    Raises:
        ValueError: an unknown game, or `minatar` is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, game: str = "breakout", sticky_actions: float = 0.1, difficulty_ramping: bool = True) -> None:
        if game not in GAMES:
            raise ValueError(f"unknown MinAtar game '{game}': there are {', '.join(GAMES)}")
        if not 0.0 <= sticky_actions <= 1.0:
            raise ValueError(f"sticky_actions={sticky_actions}, expected a number in [0, 1]")
        self.game, self.sticky_actions, self.difficulty_ramping = game, sticky_actions, difficulty_ramping
        self.observation_space = gymnasium.spaces.Box(0, 1, SHAPE, np.int8)
        self.action_space = gymnasium.spaces.Discrete(ACTIONS)
        self._environment = import_minatar().Environment
        self._play = self._new()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[State, dict[str, Any]]:
        """The first state of a new episode."""
        super().reset(seed=seed)
        if seed is not None:
            self._play = self._new()  # MinAtar's reset keeps the last action, which a sticky action repeats
            self._play.seed(int(self.np_random.integers(1 << 31)))
        self._play.reset()
        return self._state(), {}

    def step(self, action: np.int64) -> tuple[State, float, bool, bool, dict[str, Any]]:
        """One tick of the game."""
        reward, terminated = self._play.act(int(action))
        return self._state(), float(reward), bool(terminated), False, {}

    def _new(self) -> Any:
        return self._environment(self.game, self.sticky_actions, self.difficulty_ramping)

    def _state(self) -> State:
        state = np.zeros(SHAPE, dtype=np.int8)
        shown = self._play.state()
        state[:, :, : shown.shape[2]] = shown
        return state


def import_minatar() -> Any:
    """The package. Raises ValueError where it is not installed; says how to install it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns that seaborn is missing, which only its display needs
    try:
        import minatar
    except ImportError:
        raise ValueError(f"MinAtar is not installed: {INSTALL}") from None
    finally:
        logging.disable(before)
    return minatar
