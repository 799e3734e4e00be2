"""Schedules: functions of progress in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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
class Warmup:
    """A straight line from `start` to `after(0)`, then the whole of `after`.

    The line takes the first `share` of the span, in (0, 1). `after` takes the rest.
    """

    after: Schedule
    start: float
    share: float

    def __call__(self, progress: float) -> float:
        if progress < self.share:
            return Linear(self.start, self.after(0.0))(progress / self.share)
        return self.after((progress - self.share) / (1.0 - self.share))


def progress(position: float, begin: float, span: float) -> float:
    """Returns (position - begin) / span, clipped to [0, 1]; span > 0."""
    return min(max((position - begin) / span, 0.0), 1.0)
