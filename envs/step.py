"""What a vector of environments gives at each step, whatever it plays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


class Episode(NamedTuple):
    """A finished game: score and length of the whole of it, whatever lives were lost."""

    env: int
    score: float  # raw, unclipped
    frames: int  # emulator frames acted in


class Step(NamedTuple):
    """What one action in each of N environments led to."""

    frames: Frames  # [N, 84, 84]: what to act on next; the first frame of a new episode where one ended
    last_frames: Frames  # [N, 84, 84]: what the action led to; differs from `frames` only where an episode ended
    rewards: npt.NDArray[np.float32]  # [N], raw
    discounts: npt.NDArray[np.float32]  # [N]: 0 at a terminal state and, if the protocol says so, a lost life; else 1
    terminated: Flags  # [N]: the game is over
    ended: Flags  # [N]: terminated, or truncated by the frame cap or a task switch
    episodes: list[Episode]  # those that ended of themselves (not cut by a task switch)
