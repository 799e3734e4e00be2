"""Schedules are functions of progress."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_rl.schedules import Constant, Cosine, Linear, Warmup, progress


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
