"""Mean, median and inter-quartile mean of scores, with bootstrap intervals (Agarwal et al. 2021, arXiv 2108.13264)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A statistic and its bootstrap percentile interval; both ends None where there is nothing to resample."""

    value: float
    low: float | None
    high: float | None


def iqm(scores: Floats, axis: int = -1) -> Floats:
    """Inter-quartile mean along `axis`: what is left when the lowest and the highest quarter are dropped.

    floor(n / 4) of n scores are dropped at either end, as rliable (scipy's `trim_mean`) does.
    """
    n = scores.shape[axis]
    middle: Floats = np.sort(scores, axis=axis).take(np.arange(n // 4, n - n // 4), axis=axis).mean(axis=axis)
    return middle


def estimate(
    scores: Sequence[float], statistic: Callable[..., Floats] = iqm, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """`statistic` (along `axis=-1`) of one game's episodes, resampled with replacement.

    Raises ValueError for no scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0:
        raise ValueError("there is no score to take a statistic of.")
    value = float(statistic(values, axis=-1))
    if values.size == 1:
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)
    drawn = values[rng.integers(0, values.size, (resamples, values.size))]
    return Estimate(value, *_interval(statistic(drawn, axis=-1)))


class Aggregate(NamedTuple):
    """Over games. Mean and median are of the games' means over their runs, the IQM is over all runs of all games."""

    mean: Estimate
    median: Estimate
    iqm: Estimate


def aggregate(scores: Sequence[Sequence[float]], *, resamples: int = RESAMPLES, seed: int = 0) -> Aggregate:
    """scores[game][run], each normalised: the games are fixed, the runs of each game are resampled (stratified).

    The interval is left out unless every game has two runs or more: one run cannot say how much runs differ.

    Raises ValueError for no game, or a game without a run.
    """
    games = [np.asarray(runs, dtype=np.float64) for runs in scores]
    if not games or any(runs.size == 0 for runs in games):
        raise ValueError("an aggregate needs one game or more, and a score of each.")
    rng = np.random.default_rng(seed)
    drawn = [runs[rng.integers(0, runs.size, (resamples, runs.size))] for runs in games]
    several = all(runs.size > 1 for runs in games)

    def over_games(statistic: Callable[..., Floats]) -> Estimate:
        value = float(statistic(np.array([runs.mean() for runs in games]), axis=-1))
        means = np.stack([runs.mean(axis=1) for runs in drawn], axis=1)  # [resamples, games]
        return Estimate(value, *(_interval(statistic(means, axis=-1)) if several else (None, None)))

    interval = _interval(iqm(np.concatenate(drawn, axis=1))) if several else (None, None)
    over_runs = Estimate(float(iqm(np.concatenate(games))), *interval)
    return Aggregate(over_games(np.mean), over_games(np.median), over_runs)


def _interval(statistics: Floats) -> tuple[float, float]:
    low, high = np.quantile(statistics, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
