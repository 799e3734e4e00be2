"""The sequence as a gymnasium environment: `gymnasium.make("nap_rl/SequentialAtari-v0")`.

Importing `nap_rl.envs.gym` registers the id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from nap_rl.envs.atari import FRAME_SHAPE, FRAME_SKIP, Protocol
from nap_rl.envs.sequential import SequentialAtari

SEQUENCE_ID = "nap_rl/SequentialAtari-v0"
SHAPE = (*FRAME_SHAPE, 1)  # channels last, as gymnasium has them


class SequentialAtariEnv(gymnasium.Env[npt.NDArray[np.uint8], np.int64]):
    """One environment that plays `games` in turn, `frames_per_game` emulator frames each, `cycles` times.

    Observations are single frames [84, 84, 1] uint8, to be stacked by a wrapper. All 18 actions, raw rewards. A task
    switch is a truncation. `info` holds game, cycle, visit and frames. `reset(seed=...)` starts the sequence again.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60 // FRAME_SKIP}

    def __init__(
        self,
        games: Sequence[str] = ("pong", "breakout"),
        frames_per_game: int = 200_000,
        cycles: int = 2,
        protocol: Protocol | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.games, self.frames_per_game, self.cycles, self.protocol = games, frames_per_game, cycles, protocol
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, SHAPE, np.uint8)
        self._envs = self._sequence(seed=0)
        self.action_space = gymnasium.spaces.Discrete(self._envs.num_actions)
        self._frame = np.zeros(SHAPE, dtype=np.uint8)
        self._begun = False  # `_frame` begins an episode and waits for reset() to return it

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """The first frame of the next episode; with a seed, of the whole sequence."""
        super().reset(seed=seed)
        if seed is not None:
            self._envs.close()
            self._envs = self._sequence(seed)
        if seed is not None or not self._begun:
            self._frame = self._envs.reset()[0, :, :, None]
        self._begun = False
        return self._frame, self._info()

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """One agent step (4 emulator frames)."""
        step = self._envs.step(np.array([action]))
        self._frame = step.observations[0, :, :, None]
        self._begun = bool(step.ended[0])
        return (
            step.last_observations[0, :, :, None],
            float(step.rewards[0]),
            bool(step.terminated[0]),
            bool(step.ended[0] and not step.terminated[0]),
            self._info(),
        )

    def render(self) -> npt.NDArray[np.uint8]:
        """The newest frame as [84, 84, 3] uint8."""
        return np.repeat(self._frame, 3, axis=2)

    def close(self) -> None:
        """Free the emulator."""
        self._envs.close()

    def _sequence(self, seed: int) -> SequentialAtari:
        return SequentialAtari(self.games, self.frames_per_game, self.cycles, 1, self.protocol, seed=seed)

    def _info(self) -> dict[str, Any]:
        visit = self._envs.visit
        return {"game": visit.task, "cycle": visit.cycle, "visit": visit.number, "frames": self._envs.frames}


gymnasium.register(SEQUENCE_ID, entry_point=f"{__name__}:SequentialAtariEnv")
