"""Statistics of scores against plain Python, and intervals against the normal approximation."""

from __future__ import annotations

import math
import statistics as plain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_rl.report.statistics import aggregate, estimate, improvement, iqm, mean_interval

SCORES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)


@given(SCORES)
def test_iqm_is_the_mean_of_what_is_left_without_the_lowest_and_highest_quarter(scores: list[float]) -> None:
    cut = len(scores) // 4
    middle = sorted(scores)[cut : len(scores) - cut]
    assert float(iqm(np.array(scores))) == pytest.approx(math.fsum(middle) / len(middle), abs=1e-6)


def test_iqm_goes_along_one_axis() -> None:
    table = np.array([[0.0, 1.0, 3.0, 100.0], [4.0, -9.0, 6.0, 2.0]])
    assert iqm(table).tolist() == [2.0, 3.0]
    assert iqm(table.T, axis=0).tolist() == [2.0, 3.0]


@pytest.mark.parametrize(("statistic", "factor"), [(np.mean, 1.0), (iqm, 1.1)])
def test_the_interval_is_that_of_the_normal_approximation_on_many_scores(statistic, factor) -> None:  # type: ignore[no-untyped-def]
    scores = np.random.default_rng(0).normal(5.0, 2.0, 400)
    value, low, high = estimate(scores.tolist(), statistic)
    half = 1.96 * 2.0 / math.sqrt(400) * factor
    assert value == pytest.approx(float(statistic(scores)))
    assert low is not None and high is not None
    assert low == pytest.approx(value - half, abs=0.05) and high == pytest.approx(value + half, abs=0.05)


def test_one_score_has_no_interval_and_none_has_no_statistic() -> None:
    assert estimate([3.0]) == (3.0, None, None)
    with pytest.raises(ValueError, match="no score"):
        estimate([])


def test_an_aggregate_takes_mean_and_median_of_the_games_means_and_the_iqm_of_all_runs() -> None:
    games = [[0.0, 2.0], [10.0, 20.0], [3.0, 5.0]]
    total = aggregate(games)
    means = [sum(runs) / len(runs) for runs in games]
    assert total.mean.value == pytest.approx(sum(means) / 3)
    assert total.median.value == plain.median(means)
    assert total.iqm.value == pytest.approx((2 + 3 + 5 + 10) / 4)


def test_resampling_is_stratified_runs_never_change_their_game() -> None:
    total = aggregate([[0.0, 0.0], [100.0, 100.0]])  # the runs of each game agree: nothing is uncertain
    assert total.mean == (50.0, 50.0, 50.0)
    assert total.median == (50.0, 50.0, 50.0)


def test_the_median_interval_moves_only_with_the_runs_of_the_game_in_the_middle() -> None:
    total = aggregate([[0.0, 0.0], [4.0, 6.0], [100.0, 100.0]])
    assert total.median == (5.0, 4.0, 6.0)


def test_one_run_of_a_game_leaves_the_intervals_out() -> None:
    for estimated in aggregate([[1.0], [2.0, 3.0]]):
        assert estimated.low is None and estimated.high is None


@pytest.mark.parametrize("scores", [[], [[1.0], []]])
def test_no_game_or_a_game_without_a_run_is_refused(scores: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="one game or more"):
        aggregate(scores)


def test_the_interval_of_a_curve_holds_the_mean_and_is_nothing_for_equal_runs() -> None:
    values = np.random.default_rng(0).normal(size=(400, 3)) + [0.0, 10.0, -5.0]
    low, high = mean_interval(values)
    assert ((low < values.mean(0)) & (values.mean(0) < high)).all()
    # the mean of 400 standard normals has a 95 % interval of width 2 * 1.96 / 20
    np.testing.assert_allclose(high - low, 0.196, rtol=0.15)
    low, high = mean_interval(np.full((3, 2), 7.0))
    np.testing.assert_allclose([low, high], 7.0)


def test_one_point_of_a_curve_has_the_interval_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(size=30)
    low, high = mean_interval(values[:, None])
    alone = estimate(values.tolist(), np.mean)
    assert (low[0], high[0]) == pytest.approx((alone.low, alone.high), rel=1e-9)


def test_the_probability_of_improvement_counts_pairs_and_ties_by_half() -> None:
    value, low, high = improvement([3.0, 2.0], [1.0, 2.0, 4.0])
    assert value == pytest.approx((1 + 1 + 0 + 1 + 0.5 + 0) / 6)
    assert low is not None and high is not None and 0 <= low < value < high <= 1
    assert improvement([5.0, 6.0], [1.0, 2.0]) == (1.0, 1.0, 1.0)
    assert improvement([5.0], [1.0, 2.0]) == (1.0, None, None)
    with pytest.raises(ValueError, match="a score on either side"):
        improvement([], [1.0])
