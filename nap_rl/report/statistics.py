"""Mean, median and inter-quartile mean of scores, with bootstrap intervals (Agarwal et al. 2021, arXiv 2108.13264)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A statistic and its bootstrap percentile interval; both ends are None for a single score."""

    value: float
    low: float | None
    high: float | None


def iqm(scores: Floats, axis: int = -1) -> Floats:
    """Inter-quartile mean along `axis`: the mean without the lowest and the highest floor(n / 4) of n scores.

    rliable drops as many (scipy's `trim_mean`).
    """
    n = scores.shape[axis]
    middle: Floats = np.sort(scores, axis=axis).take(np.arange(n // 4, n - n // 4), axis=axis).mean(axis=axis)
    return middle


def estimate(
    scores: Sequence[float], statistic: Callable[..., Floats] = iqm, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """`statistic` (along `axis=-1`) of one game's episodes, which are resampled with replacement.

    Raises ValueError if there is no score.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0:
        raise ValueError("there is no score to take a statistic of.")
    value = float(statistic(values, axis=-1))
    if values.size == 1:
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)
    drawn = values[rng.integers(0, values.size, (resamples, values.size))]
    return Estimate(value, *map(float, _interval(statistic(drawn, axis=-1))))


def ratio(scores: Sequence[float], others: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """IQM of `scores` over IQM of `others`, each resampled with replacement. No interval if one of them is single.

    Raises ValueError if there is no score.
    """
    if not len(scores) or not len(others):
        raise ValueError("a ratio needs a score on either side.")
    above, below = np.asarray(scores, dtype=np.float64), np.asarray(others, dtype=np.float64)
    value = float(iqm(above) / iqm(below))
    if min(above.size, below.size) == 1:
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)
    drawn = [iqm(side[rng.integers(0, side.size, (resamples, side.size))]) for side in (above, below)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return Estimate(value, *map(float, _interval(drawn[0] / drawn[1])))


def improvement(
    scores: Sequence[float], others: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Probability of improvement: P(X > Y) + P(X = Y) / 2 of a run X of `scores` and a run Y of `others`.

    Runs are resampled on both sides (Agarwal et al. 2021). No interval if one of them is single.

    Raises ValueError if there is no score.
    """
    if not len(scores) or not len(others):
        raise ValueError("a probability of improvement needs a score on either side.")
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(others, dtype=np.float64)
    wins = (np.sign(x[:, None] - y[None]) + 1) / 2  # [X, Y] 1, 1/2 or 0
    if min(x.size, y.size) == 1:
        return Estimate(float(wins.mean()), None, None)
    rng = np.random.default_rng(seed)
    of_x, of_y = (rng.multinomial(n, np.full(n, 1 / n), resamples) for n in (x.size, y.size))  # [resamples, runs]
    drawn = ((of_x @ wins) * of_y).sum(axis=1) / wins.size
    return Estimate(float(wins.mean()), *map(float, _interval(drawn)))


def iqm_interval(values: Floats, *, resamples: int = 1_000, seed: int = 0) -> tuple[Floats, Floats]:
    """Interval of the IQM over runs: [runs, points] -> low [points], high [points]; the points share their draws."""
    drawn = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    return _interval(np.stack([iqm(column[drawn]) for column in values.T], axis=1))


class Aggregate(NamedTuple):
    """Statistics over games: mean and median of the games' means over their runs, IQM of all runs of all games."""

    mean: Estimate
    median: Estimate
    iqm: Estimate


def aggregate(scores: Sequence[Sequence[float]], *, resamples: int = RESAMPLES, seed: int = 0) -> Aggregate:
    """Statistics of scores[game][run], normalised. The runs of each game are resampled (stratified), games are not.

    The interval is left out unless every game has two runs or more: one run cannot say how much runs differ.

    Raises ValueError if there is no game, or a game without a run.
    """
    games = [np.asarray(runs, dtype=np.float64) for runs in scores]
    if not games or any(runs.size == 0 for runs in games):
        raise ValueError("an aggregate needs one game or more, and a score of each.")
    rng = np.random.default_rng(seed)
    drawn = [runs[rng.integers(0, runs.size, (resamples, runs.size))] for runs in games]
    several = all(runs.size > 1 for runs in games)

    means = np.stack([runs.mean(axis=1) for runs in drawn], axis=1)  # [resamples, games]

    def with_interval(value: Floats, resampled: Floats) -> Estimate:
        return Estimate(float(value), *(map(float, _interval(resampled)) if several else (None, None)))

    mean, median = (
        with_interval(statistic([runs.mean() for runs in games]), statistic(means, axis=1))
        for statistic in (np.mean, np.median)
    )
    return Aggregate(mean, median, with_interval(iqm(np.concatenate(games)), iqm(np.concatenate(drawn, axis=1))))


def mean_interval(values: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[Floats, Floats]:
    """Interval of the mean over runs: [runs, points] -> low [points], high [points].

    Every resample draws whole runs, so the points of a curve share their draws.
    """
    runs = len(values)
    drawn = np.random.default_rng(seed).integers(0, runs, (resamples, runs))
    places = drawn + runs * np.arange(resamples)[:, None]  # of each draw in the flattened [resamples, runs]
    counts = np.bincount(places.ravel(), minlength=resamples * runs).reshape(resamples, runs)
    return _interval(counts / runs @ values)


def _interval(statistics: Floats) -> tuple[Any, Any]:
    """Percentiles over the first axis, that of the resamples: numbers of [resamples], arrays of [resamples, points]."""
    low, high = np.quantile(statistics, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high
