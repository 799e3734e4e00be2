"""The last C frames of each environment, as the network sees them when acting."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class FrameStack:
    """stacks [N, C, H, W] uint8, oldest frame first; zeros before an episode's first frame, as in the replay."""

    def __init__(self, num_envs: int, stack: int = 4, frame_shape: tuple[int, ...] = (84, 84)) -> None:
        self.stacks = np.zeros((num_envs, stack, *frame_shape), dtype=np.uint8)

    def push(self, frames: npt.NDArray[np.uint8], first: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        """Append frames [N, H, W]; where `first` [N], forget what came before. Returns the stacks (not a copy)."""
        self.stacks[:, :-1] = self.stacks[:, 1:]
        self.stacks[first] = 0
        self.stacks[:, -1] = frames
        return self.stacks
