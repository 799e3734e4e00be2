"""A gymnasium environment of the sequence, so that `gymnasium.make("nap_rl/SequentialAtari-v0")` works for anybody.

Importing `nap_rl.envs.gym` registers the id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from nap_rl.envs.atari import Protocol
from nap_rl.envs.sequential import SequentialAtari

SEQUENCE_ID = "nap_rl/SequentialAtari-v0"


class SequentialAtariEnv(gymnasium.Env[npt.NDArray[np.uint8], np.int64]):
    """One environment that plays `games` in turn, `frames_per_game` emulator frames each, `cycles` times over.

    Observations [84, 84, 1] uint8, one frame (stack them as usual), all 18 actions, raw rewards. A task switch is a
    truncation; `info` holds game, cycle, visit and frames. `reset(seed=...)` starts the whole sequence again.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(
        self,
        games: Sequence[str] = ("pong", "breakout"),
        frames_per_game: int = 200_000,
        cycles: int = 2,
        protocol: Protocol | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.games, self.frames_per_game, self.cycles, self.protocol = (
            games,
            frames_per_game,
            cycles,
            protocol,
        )
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (84, 84, 1), np.uint8)
        self._envs = self._sequence(seed=0)
        self.action_space = gymnasium.spaces.Discrete(self._envs.num_actions)
        self._frame = np.zeros((84, 84, 1), dtype=np.uint8)
        self._begun = False  # whether `_frame` begins an episode that reset() has not handed out yet

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """The first frame of the next episode of the current game; a seed begins the whole sequence anew."""
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
        self._frame = step.frames[0, :, :, None]  # of the next episode where one ended: what reset() hands out
        self._begun = bool(step.ended[0])
        return (
            step.last_frames[0, :, :, None],
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
        return {"game": visit.game, "cycle": visit.cycle, "visit": visit.number, "frames": self._envs.frames}


gymnasium.register(SEQUENCE_ID, entry_point=f"{__name__}:SequentialAtariEnv")
