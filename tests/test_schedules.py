"""Schedules are functions of progress."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_rl.schedules import Constant, Cosine, Curve, Linear, Restarts, Warmup, progress


@given(st.floats(0, 1))
def test_constant_ignores_progress(p: float) -> None:
    assert Constant(6.25e-5)(p) == 6.25e-5


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0, 1))
def test_linear_is_the_straight_line_between_its_ends(start: float, end: float, p: float) -> None:
    line = Linear(start, end)
    assert line(0.0) == start
    assert line(1.0) == pytest.approx(end, abs=1e-12)
    assert line(p) == pytest.approx((1 - p) * start + p * end, abs=1e-9)


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0, 1))
def test_cosine_is_half_a_cosine_between_its_ends(start: float, end: float, p: float) -> None:
    curve = Cosine(start, end)
    assert curve(0.0) == pytest.approx(start, abs=1e-12) and curve(1.0) == pytest.approx(end, abs=1e-12)
    assert curve(0.5) == pytest.approx((start + end) / 2, abs=1e-12)
    assert curve(p) == pytest.approx(
        start * math.cos(math.pi * p / 2) ** 2 + end * math.sin(math.pi * p / 2) ** 2, abs=1e-9
    )


@given(st.floats(0.01, 0.99), st.floats(0, 1))
def test_a_warmup_is_a_line_to_the_beginning_of_the_whole_schedule_after_it(share: float, p: float) -> None:
    after = Cosine(6.25e-4, 1e-6)
    curve = Warmup(after, 1e-8, share)
    assert curve(0.0) == pytest.approx(1e-8) and curve(1.0) == pytest.approx(1e-6)
    assert curve(share) == pytest.approx(6.25e-4)
    if p < share:
        assert curve(p) == pytest.approx(1e-8 + (6.25e-4 - 1e-8) * p / share)
    else:
        assert curve(p) == pytest.approx(after((p - share) / (1 - share)))


@pytest.mark.parametrize(
    ("position", "rate"),
    # Cycles of 1, 2 and 4 parts of 14: from 0 to 2, 2 to 6 and 6 to 14.
    [(0, 3.0), (0.5, 2 + math.cos(math.pi / 4)), (1, 2.0), (2, 3.0), (4, 2.0), (6, 3.0), (10, 2.0), (14, 1.0)],
)
def test_restarts_begin_a_cosine_anew_after_1_2_and_4_parts(position: float, rate: float) -> None:
    assert Restarts(3.0, 1.0, cycles=3, growth=2.0)(position / 14) == pytest.approx(rate)


def test_before_a_restart_the_rate_is_at_its_end_and_equal_cycles_are_equal() -> None:
    curve = Restarts(3.0, 1.0, cycles=4, growth=1.0)
    assert [curve(k / 4 - 1e-9) for k in (1, 2, 3, 4)] == pytest.approx([1.0] * 4, abs=1e-6)
    assert [curve(k / 4 + 0.1) for k in range(4)] == pytest.approx([curve(0.1)] * 4)
    assert curve(1.0) == pytest.approx(1.0)


@given(st.floats(0, 1))
def test_one_cycle_is_a_cosine(p: float) -> None:
    assert Restarts(3.0, 1.0, cycles=1, growth=2.0)(p) == Cosine(3.0, 1.0)(p)


@pytest.mark.parametrize(("p", "value"), [(0.0, 4.0), (0.2, 4.0), (0.3, 3.0), (0.4, 2.0), (0.7, 5.0), (1.0, 8.0)])
def test_a_curve_is_straight_between_its_points_and_flat_beyond_them(p: float, value: float) -> None:
    assert Curve(np.array([0.2, 0.4, 1.0]), np.array([4.0, 2.0, 8.0]))(p) == pytest.approx(value)


def test_a_warmup_in_place_leads_to_what_the_schedule_is_by_then() -> None:
    curve = Warmup(Linear(10.0, 0.0), 0.0, 0.25, in_place=True)
    assert [curve(p) for p in (0.0, 0.125, 0.25, 0.5, 1.0)] == pytest.approx([0.0, 3.75, 7.5, 5.0, 0.0])


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(1, 1e9))
def test_progress_is_the_share_of_the_span_and_never_leaves_0_to_1(position: float, begin: float, span: float) -> None:
    share = progress(position, begin, span)
    assert 0.0 <= share <= 1.0
    if begin <= position <= begin + span:
        assert share == pytest.approx((position - begin) / span)
    assert progress(begin - 1, begin, span) == 0.0
    assert progress(begin + 2 * span, begin, span) == 1.0


def test_progress_counts_from_the_beginning_of_its_span() -> None:
    assert progress(150, 100, 200) == 0.25
