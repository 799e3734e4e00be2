"""What stands beside the game in a film: it follows the values that are given, and leaves out what is not there."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from nap_rl.envs.film import BAR, DISTRIBUTION, HEAD, PAPER, RATE, TAKEN, TITLE, Expected, Panel, Rate, returns_range

SIZE = (320, 420)
ACTIONS = ("NOOP", "FIRE", "LEFT")
SUPPORT = np.linspace(-10, 10, 21)
TRAINED = Rate(np.array([0.0, 400.0, 800.0]), np.array([1e-3, 1e-4, 1e-5]), at=400)


def expecting(*q: float, peak: float | None = None) -> Expected:
    values = np.array(q)
    if peak is None:
        return Expected(values, int(values.argmax()))
    weights = np.exp(-np.square(SUPPORT - peak))
    return Expected(values, int(values.argmax()), SUPPORT, weights / weights.sum())


def drawn(expected: Expected, *, taken: int = 0, rate: Rate | None = None, score: float = 0.0) -> NDArray[np.uint8]:
    return Panel(cv2, SIZE, ACTIONS, [expected], rate).draw(0, taken, score)


def pixels(picture: NDArray[np.uint8], colour: Any) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (picture == np.array(colour)).all(axis=-1)
    return found


def is_empty(part: NDArray[np.uint8]) -> bool:
    return bool(pixels(part, PAPER).all())


def test_a_picture_has_the_size_of_the_game_beside_it() -> None:
    assert drawn(expecting(1, 2, 3)).shape == (420, 320, 3)


def test_a_bar_is_as_long_as_its_value_and_that_of_the_action_taken_stands_out() -> None:
    bars = drawn(expecting(1.0, 2.0, 4.0), taken=1)[HEAD + TITLE :, 104:264]
    lengths = sorted(set(pixels(bars, BAR).sum(axis=1)) - {0})
    taken = pixels(bars, TAKEN).sum(axis=1).max()
    assert len(lengths) == 2 and lengths[1] == pytest.approx(4 * lengths[0], abs=6)  # both ends are drawn
    assert taken == pytest.approx(2 * lengths[0], abs=2)


def test_values_below_zero_go_to_the_other_side_of_one_zero_for_the_whole_episode() -> None:
    panel = Panel(cv2, SIZE, ACTIONS, [expecting(-2.0, -2.0, -2.0), expecting(2.0, 2.0, 2.0)])
    below, above = (np.flatnonzero(pixels(panel.draw(step, 0, 0.0)[70:], BAR).any(axis=0)) for step in (0, 1))
    assert below.max() == above.min()
    assert np.ptp(below) == pytest.approx(np.ptp(above), abs=1)


@pytest.mark.parametrize("rate", [None, TRAINED], ids=["without rate", "with rate"])
def test_the_distribution_moves_with_the_returns_and_is_left_out_where_the_head_has_none(rate: Rate | None) -> None:
    end = SIZE[1] - (RATE if rate is not None else 0)
    begin = end - DISTRIBUTION + TITLE
    steps = [expecting(1, 2, 3, peak=peak) for peak in (-5.0, 5.0)]
    panel = Panel(cv2, SIZE, ACTIONS, steps, rate)
    low, high = (pixels(panel.draw(step, 0, 0.0)[begin : end - 20], BAR).sum(axis=0).argmax() for step in (0, 1))
    assert low < 160 < high
    without = drawn(expecting(1, 2, 3), rate=rate)
    assert is_empty(without[end - DISTRIBUTION : end])


def test_the_rate_falls_and_its_dot_stands_at_the_checkpoint() -> None:
    part = drawn(expecting(1, 2, 3), rate=TRAINED)[-RATE + TITLE :]
    line, dot = ~pixels(part[:-20], PAPER), np.argwhere(pixels(part, TAKEN)).mean(axis=0)
    rows = [np.flatnonzero(line[:, column]).mean() for column in (20, 300)]
    assert rows[0] < dot[0] < rows[1]  # downwards on the screen
    assert dot[1] == pytest.approx(160, abs=2)
    assert is_empty(drawn(expecting(1, 2, 3))[-RATE:])


def test_score_and_step_are_written_above() -> None:
    none, some = (drawn(expecting(1, 2, 3), score=score)[:HEAD] for score in (0.0, 12.0))
    assert not np.array_equal(none, some)


@pytest.mark.parametrize(
    "expected",
    [
        expecting(0.0, 0.0, 0.0),
        expecting(*np.zeros(3)),
        Expected(np.full(3, 7.0), 0, np.full(32, 7.0), np.full(32, 1 / 32)),
        Expected(np.full(3, 7.0, dtype=np.float32), 0, np.full(1, 7.0), np.ones(1)),
    ],
)
def test_values_without_any_spread_are_drawn(expected: Expected) -> None:
    constant = Rate(np.array([0.0]), np.array([1e-3]))
    assert drawn(expected, rate=constant).shape == (420, 320, 3)


def test_eighteen_actions_stay_above_the_distribution() -> None:
    q = np.arange(18.0)
    one = Expected(q, 17, SUPPORT, np.full(21, 1 / 21))
    picture = Panel(cv2, SIZE, [f"ACTION {i}" for i in range(18)], [one], TRAINED).draw(0, 17, 0.0)
    assert pixels(picture[: -RATE - DISTRIBUTION], TAKEN).any()
    assert not pixels(picture[-RATE - DISTRIBUTION : -RATE], TAKEN).any()


def test_the_range_of_returns_holds_what_is_likely_at_any_step() -> None:
    narrow = Expected(np.zeros(3), 0, SUPPORT, np.eye(21)[10])
    other = Expected(np.zeros(3), 0, SUPPORT, np.eye(21)[14])
    assert returns_range([narrow, other]) == (0.0, 4.0, 2)
    assert returns_range([narrow]) == (-0.5, 0.5, 1)
    assert returns_range([expecting(1, 2, 3)]) is None


def test_a_categorical_head_has_a_bar_for_each_likely_atom_and_no_gap() -> None:
    flat = Expected(np.zeros(3), 0, np.linspace(-10, 10, 51), np.full(51, 1 / 51))
    bars = pixels(drawn(flat)[-60], BAR)[12:308]
    gaps = np.diff(np.flatnonzero(bars))
    assert gaps.max() <= 3 and (gaps > 1).sum() == 50
