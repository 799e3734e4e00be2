"""Schedules: functions of progress in [0, 1]; and what begins one anew when learning stalls."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Schedule = Callable[[float], float]
"""progress -> value. progress is the share of the schedule's span that has passed; the caller clips it to [0, 1]."""


@dataclass(frozen=True)
class Constant:
    """`start` at any progress."""

    start: float

    def __call__(self, progress: float) -> float:
        return self.start


@dataclass(frozen=True)
class Linear:
    """A straight line from `start` at progress 0 to `end` at progress 1."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` at progress 0 to `end` at progress 1 (Loshchilov & Hutter 2017, arXiv 1608.03983)."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        return self.end + (self.start - self.end) * (1.0 + math.cos(math.pi * progress)) / 2.0


@dataclass(frozen=True)
class Restarts:
    """Cosines from `start` to `end`, one after another: warm restarts (Loshchilov & Hutter 2017, arXiv 1608.03983).

    Cycle i takes growth^i / (1 + growth + ... + growth^(cycles - 1)) of the span: the last one ends with it. `growth`
    is T_mult of the source. cycles >= 1 and growth >= 1.
    """

    start: float
    end: float
    cycles: int
    growth: float

    @cached_property
    def _ends(self) -> list[float]:
        """Progress at which each cycle ends."""
        lengths = [self.growth**i for i in range(self.cycles)]
        whole = math.fsum(lengths)
        return [*(math.fsum(lengths[: i + 1]) / whole for i in range(self.cycles - 1)), 1.0]

    def __call__(self, progress: float) -> float:
        cycle = min(bisect_right(self._ends, progress), self.cycles - 1)
        begin = self._ends[cycle - 1] if cycle else 0.0
        return Cosine(self.start, self.end)((progress - begin) / (self._ends[cycle] - begin))


@dataclass(frozen=True, eq=False)
class Curve:
    """Straight lines between points; before the first and after the last, the value there.

    `positions` [P] is progress, rising, and may reach beyond [0, 1]; `values` [P].
    """

    positions: NDArray[np.float64]
    values: NDArray[np.float64]

    def __call__(self, progress: float) -> float:
        return float(np.interp(progress, self.positions, self.values))


@dataclass(frozen=True)
class Warmup:
    """A straight line from `start`, then `after`.

    The line takes the first `share` of the span, in (0, 1). It leads to `after(0)`, and the whole of `after` takes the
    rest. With `in_place` it leads to `after(share)`, and takes the place of what `after` is before that.
    """

    after: Schedule
    start: float
    share: float
    in_place: bool = False

    def __call__(self, progress: float) -> float:
        if progress < self.share:
            return Linear(self.start, self.after(self.share if self.in_place else 0.0))(progress / self.share)
        return self.after(progress if self.in_place else (progress - self.share) / (1.0 - self.share))


def progress(position: float, begin: float, span: float) -> float:
    """Returns (position - begin) / span, clipped to [0, 1]; span > 0."""
    return min(max((position - begin) / span, 0.0), 1.0)


# Re-warming


@dataclass(frozen=True)
class Rewarming:
    """The learning rate rises again when learning stalls. Frames are emulator frames, over all environments.

    After Lyle et al. 2025 (arXiv 2507.20057), who raise the effective learning rate "as needed" so that a network
    overwrites old features. Under projection the learning rate is the effective one. We know the paper's abstract
    alone, which does not state what tells that it is needed. Our choice: the mean return of the last 100 episodes of
    the visit, which is told nothing of tasks.

        a warming begins at frame w: the first update, and with env.on_switch.schedule=restart each switch
        rate(frame) = schedule((frame - w) / cycle_frames), and the schedule's end after the cycle
        the return improves where it exceeds best + tolerance |best|; best is the highest since w that did
        learning has stalled where frame >= w + cycle_frames and nothing improved for patience_frames:  w <- frame

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
