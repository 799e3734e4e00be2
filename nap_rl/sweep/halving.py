"""Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934): at each rung the worse runs end.

Rungs are at `grace`, 4 * `grace`, 16 * `grace`, ... frames. A run that reaches one goes on unless its score there is
below the 75th percentile of the scores of the runs that were there before. The verdict is a line in the run's own
rungs.csv. So the next driver knows what was decided, and by which scores.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nap_rl.files import write_atomic
from nap_rl.report.curves import read_metrics

NAME = "rungs.csv"
FACTOR = 4


class Halving(NamedTuple):
    """What runs are judged by.

    Attributes:
        metric: a column of metrics.csv; more is better.
        grace: frames that every run gets.
        longest: frames of the longest run.
    """

    metric: str
    grace: int
    longest: int

    @property
    def rungs(self) -> list[int]:
        """Frames at which runs are judged."""
        found = [self.grace]
        while found[-1] * FACTOR < self.longest:
            found.append(found[-1] * FACTOR)
        return found


class Verdict(NamedTuple):
    """What was decided of a run at a rung."""

    rung: int  # frames
    metric: str
    score: float
    goes_on: bool


class Judge:
    """Decides which runs go on; knows what was decided before.

    Args:
        folders: of all runs of the sweep.
    """

    def __init__(self, halving: Halving, folders: Iterable[Path]) -> None:
        self.halving = halving
        self._scores: dict[int, dict[Path, float]] = {rung: {} for rung in halving.rungs}
        for folder in folders:
            for verdict in verdicts_of(folder):
                if verdict.metric == halving.metric and verdict.rung in self._scores:
                    self._scores[verdict.rung][folder] = verdict.score

    def ends(self, folder: Path, scores: Iterable[tuple[int, float]], *, finished: bool = False) -> bool:
        """Whether the run in `folder` ends here; the verdict is written first.

        Args:
            scores: at each rung that it has reached, as `scores_of` gives them.
            finished: it has come to its end already; its scores count for others.
        """
        for rung, score in scores:
            seen = self._scores[rung]
            if folder in seen:
                continue
            goes_on = finished or not seen or score >= np.percentile(list(seen.values()), 100 - 100 / FACTOR)
            seen[folder] = score
            _add(folder, Verdict(rung, self.halving.metric, score, goes_on))
            if not goes_on:
                return True
        return False


def scores_of(folder: Path, halving: Halving) -> list[tuple[int, float]]:
    """(rung, score) of each rung that a run has reached: the first value at or behind it in metrics.csv."""
    try:
        columns = read_metrics(folder)
    except (OSError, ValueError):  # no row yet, or half of one
        return []
    values = columns.get(halving.metric, np.full(len(columns["frames"]), np.nan))
    known = np.isfinite(values)
    frames, values = columns["frames"][known], values[known]
    places = np.searchsorted(frames, halving.rungs)
    return [
        (rung, float(values[place])) for rung, place in zip(halving.rungs, places, strict=True) if place < len(values)
    ]


def verdicts_of(folder: Path) -> list[Verdict]:
    """What was decided of the run in `folder`, in order."""
    try:
        with open(folder / NAME, encoding="utf-8", newline="") as file:
            _, *rows = csv.reader(file)
    except OSError:
        return []
    return [Verdict(int(rung), metric, float(score), goes_on == "yes") for rung, metric, score, goes_on in rows]


def ended_at(folder: Path) -> int | None:
    """Frames of the rung at which the run was ended; None for one that may go on."""
    return next((verdict.rung for verdict in verdicts_of(folder) if not verdict.goes_on), None)


def _add(folder: Path, verdict: Verdict) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Verdict._fields)
    for rung, metric, score, goes_on in [*verdicts_of(folder), verdict]:
        writer.writerow([rung, metric, repr(score), "yes" if goes_on else "no"])
    write_atomic(folder / NAME, text.getvalue())
