"""Re-warming: the learning rate rises again when learning stalls.

After Lyle et al. 2025 (arXiv 2507.20057), who raise the effective learning rate "as needed" so that a network
overwrites old features. Under projection the learning rate is the effective one. We know the paper's abstract alone,
which does not state what tells that it is needed. Our choice: the mean return of the last 100 episodes of the visit,
which is told nothing of tasks.

    a warming begins at frame w (the first update, and with env.on_switch.schedule=restart each switch)
    rate(frame) = schedule((frame - w) / cycle_frames), and the schedule's end after the cycle
    the return improves where it exceeds best + tolerance |best|; best is the highest since w that did
    learning has stalled where frame >= w + cycle_frames and nothing improved for patience_frames:  w <- frame
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rewarming:
    """When the rate rises again. Frames are emulator frames, over all environments.

    Attributes:
        cycle_frames: length of a warming's schedule.
        patience_frames: frames without improvement that count as a stall.
        tolerance: an improvement is more than this share of the best return.
    """

    cycle_frames: int
    patience_frames: int
    tolerance: float


class Stall:
    """Says when learning has stalled. Call `begin` at each warming."""

    def __init__(self, settings: Rewarming, frame: int) -> None:
        self.settings = settings
        self.begin(frame)

    def begin(self, frame: int) -> None:
        """A warming begins at `frame`."""
        self.warmed = self.improved = frame
        self.best: float | None = None

    def __call__(self, frame: int, mean_return: float | None) -> bool:
        """Whether learning has stalled by `frame`; `mean_return` is None as long as no episode has ended."""
        if mean_return is not None and frame >= self.warmed:
            best = self.best
            if best is None or mean_return > best + self.settings.tolerance * abs(best):
                self.best, self.improved = mean_return, frame
        over = frame >= self.warmed + self.settings.cycle_frames
        return over and frame - self.improved >= self.settings.patience_frames

    def state(self) -> list[float | None]:
        """[frame of the warming, frame of the last improvement, best return]."""
        return [self.warmed, self.improved, self.best]

    def load_state(self, state: Sequence[float | None]) -> None:
        """What `state` gave."""
        warmed, improved, self.best = state
        assert warmed is not None and improved is not None
        self.warmed, self.improved = int(warmed), int(improved)
