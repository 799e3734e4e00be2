"""Catch: a ball falls, a paddle moves (after bsuite, Osband et al. 2020, arXiv 1908.03568)."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

Board = npt.NDArray[np.float32]


class Catch(gymnasium.Env[Board, np.int64]):
    """A ball falls one row a step from a random column; the paddle starts in the middle of the last row.

    Observations [rows, columns] float32: 1 where the ball or the paddle is, else 0. Actions: 0 left, 1 stay, 2 right.
    An episode has rows - 1 steps. Its only reward comes at the end: 1 for a caught ball, -1 for a missed one.

    Args:
        rows: 2 or more.
        columns: 1 or more. With rows > columns // 2 every ball can be caught.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, rows: int = 10, columns: int = 5) -> None:
        if rows < 2 or columns < 1:
            raise ValueError(f"Catch has {rows} rows and {columns} columns, expected at least 2 and 1")
        self.rows, self.columns = rows, columns
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (rows, columns), np.float32)
        self.action_space = gymnasium.spaces.Discrete(3)
        self._ball_row = self._ball_column = self._paddle = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Board, dict[str, Any]]:
        """A ball in a column drawn from the seed's stream."""
        super().reset(seed=seed)
        self._ball_row, self._ball_column = 0, int(self.np_random.integers(self.columns))
        self._paddle = self.columns // 2
        return self._board(), {}

    def step(self, action: np.int64) -> tuple[Board, float, bool, bool, dict[str, Any]]:
        """Move the paddle, then let the ball fall by one row."""
        self._paddle = min(max(self._paddle + int(action) - 1, 0), self.columns - 1)
        self._ball_row += 1
        landed = self._ball_row == self.rows - 1
        reward = 0.0 if not landed else 1.0 if self._paddle == self._ball_column else -1.0
        return self._board(), reward, landed, False, {}

    def _board(self) -> Board:
        board = np.zeros((self.rows, self.columns), dtype=np.float32)
        board[self._ball_row, self._ball_column] = board[-1, self._paddle] = 1.0
        return board
