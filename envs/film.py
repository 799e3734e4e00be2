"""What stands beside the game in a film: Q-values, the distribution of returns, the run's effective learning rate.

+-----------+---------------------------+
|           | step, score               |
|           | Q-values, a bar an action |   the action that was taken stands out
|   game    +---------------------------+
|           | distribution of returns   |   of the greedy action; distributional heads
|           +---------------------------+
|           | effective rate            |   over the run's frames; the checkpoint's stands out
+-----------+---------------------------+
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]  # blue, green, red

PAPER: Colour = (30, 26, 24)
INK: Colour = (225, 225, 225)
GREY: Colour = (120, 120, 120)
BAR: Colour = (175, 125, 75)
TAKEN: Colour = (60, 165, 250)
HEAD, TITLE, MARGIN = 24, 22, 12  # pixels
TEXT = 0.36  # of OpenCV's font
DISTRIBUTION, RATE = 110, 100  # heights of the lower two parts, with their titles
MOST_BINS = 60


class Expected(NamedTuple):
    """What an agent expects in one state.

    Attributes:
        q: [A] expected return of each action.
        greedy: the action with the highest.
        returns, probabilities: [N] distribution of the greedy action's return; None where the head has none.
    """

    q: Floats
    greedy: int
    returns: Floats | None = None
    probabilities: Floats | None = None


class Rate(NamedTuple):
    """Effective learning rates [rows] > 0 of a run at `frames` [rows], and the frame of the checkpoint that plays."""

    frames: Floats
    rates: Floats
    at: int | None = None


class Panel:
    """Draws the pictures of one episode. Scales stay the same throughout.

    Args:
        cv2: the module.
        size: width and height in pixels.
        actions: names of the A actions.
        expected: one for each step, at least one.
        rate: None leaves that part out.
    """

    def __init__(
        self,
        cv2: ModuleType,
        size: tuple[int, int],
        actions: Sequence[str],
        expected: Sequence[Expected],
        rate: Rate | None = None,
    ) -> None:
        self._cv2, (self._width, self._height) = cv2, size
        self._actions, self._expected = actions, expected
        q = np.stack([each.q for each in expected])
        self._lowest, self._highest = min(float(q.min()), 0.0), max(float(q.max()), 0.0)
        self._returns = returns_range(expected)
        self._empty = self._paper(rate)

    def draw(self, step: int, action: int, score: float) -> Picture:
        """[height, width, 3] uint8, blue first: before `action` at this step, with the score so far."""
        picture, expected = self._empty.copy(), self._expected[step]
        self._text(picture, f"step {step:,}   score {score:,.0f}", MARGIN, 17, INK)
        self._bars(picture, expected.q, action)
        if self._returns is not None and expected.returns is not None and expected.probabilities is not None:
            self._distribution(picture, expected.returns, expected.probabilities, self._actions[expected.greedy])
        return picture

    @property
    def _bars_end(self) -> int:
        return self._distribution_end - (DISTRIBUTION if self._returns is not None else 0)

    def _paper(self, rate: Rate | None) -> Picture:
        """What is the same in every picture."""
        self._distribution_end = self._height - (RATE if rate is not None else 0)
        picture = np.full((self._height, self._width, 3), PAPER, dtype=np.uint8)
        self._text(picture, "expected return (Q) by action", MARGIN, HEAD + 15, GREY)
        if rate is not None:
            self._rate(picture, rate)
        return picture

    def _bars(self, picture: Picture, q: Floats, taken: int) -> None:
        top = HEAD + TITLE
        row = min((self._bars_end - top) / len(q), 24.0)
        left, right = MARGIN + 92, self._width - MARGIN - 46
        span = self._highest - self._lowest or 1.0

        def x(value: float) -> int:
            return round(left + (right - left) * (value - self._lowest) / span)

        for i, value in enumerate(map(float, q)):
            y, colour = round(top + i * row), TAKEN if i == taken else BAR
            self._box(picture, (x(0.0), y + 1), (x(value), round(y + row) - 2), colour)
            ink, base = TAKEN if i == taken else INK, round(y + row / 2 + 4)
            size = TEXT if row > 12 else 0.75 * TEXT
            self._text(picture, self._actions[i], MARGIN, base, ink, size)
            self._text(picture, f"{value:.3g}", right + 6, base, ink, size)

    def _distribution(self, picture: Picture, returns: Floats, probabilities: Floats, action: str) -> None:
        assert self._returns is not None
        low, high, bins = self._returns
        top, bottom = self._bars_end + TITLE, self._distribution_end - 18
        left, right = MARGIN, self._width - MARGIN
        heights, _ = np.histogram(returns, bins, (low, high), weights=probabilities)
        edges = np.linspace(left, right, len(heights) + 1).round().astype(int)
        for begin, end, height in zip(edges[:-1], edges[1:], heights / (heights.max() or 1.0), strict=True):
            self._box(picture, (int(begin), round(bottom - (bottom - top) * height)), (int(end) - 2, bottom), BAR)
        self._text(picture, f"distribution of the return of {action}", MARGIN, self._bars_end + 15, GREY)
        self._scale(picture, bottom, f"{low:.3g}", f"{high:.3g}")

    def _rate(self, picture: Picture, rate: Rate) -> None:
        begin = self._distribution_end
        top, bottom = begin + TITLE + 4, self._height - 18
        left, right = MARGIN, self._width - MARGIN
        logs, at = np.log(rate.rates), rate.frames[-1] if rate.at is None else rate.at
        low, high = float(logs.min()), float(logs.max())
        last = float(max(rate.frames[-1], at)) or 1.0
        x = (left + (right - left) * rate.frames / last).round()
        # A rate that stays the same is a line in the middle.
        share = (logs - low) / (high - low) if high - low > 1e-3 else np.full(len(logs), 0.5)
        y = (bottom - (bottom - top) * share).round()
        line = np.stack([x, y], axis=1).astype(np.int32).reshape(-1, 1, 2)
        self._cv2.polylines(picture, [line], False, BAR, 1, self._cv2.LINE_AA)
        now = max(int(np.searchsorted(rate.frames, at, side="right")) - 1, 0)
        self._cv2.circle(picture, (int(x[now]), int(y[now])), 4, TAKEN, -1, self._cv2.LINE_AA)
        title = f"effective learning rate: {rate.rates[now]:.3g}"
        self._text(picture, title, MARGIN, begin + 15, GREY)
        self._scale(picture, bottom, "0", f"{last:,.0f} frames")

    def _scale(self, picture: Picture, y: int, low: str, high: str) -> None:
        """A line with a word below either end."""
        left, right = MARGIN, self._width - MARGIN
        self._cv2.line(picture, (left, y), (right, y), GREY, 1)
        (width, _), _ = self._cv2.getTextSize(high, self._cv2.FONT_HERSHEY_SIMPLEX, TEXT, 1)
        self._text(picture, low, left, y + 13, GREY)
        self._text(picture, high, right - width, y + 13, GREY)

    def _text(self, picture: Picture, text: str, x: int, y: int, colour: Colour, size: float = TEXT) -> None:
        font = self._cv2.FONT_HERSHEY_SIMPLEX
        self._cv2.putText(picture, text, (x, y), font, size, colour, 1, self._cv2.LINE_AA)

    def _box(self, picture: Picture, one: tuple[int, int], other: tuple[int, int], colour: Colour) -> None:
        self._cv2.rectangle(picture, one, other, colour, -1)


def returns_range(expected: Sequence[Expected]) -> tuple[float, float, int] | None:
    """Lowest and highest return with a tenth of an even share of probability or more, over all steps; None without.

    The third number says into how many bars: one for each atom of a categorical head.
    """
    likely = [
        each.returns[each.probabilities >= 0.1 / len(each.returns)]
        for each in expected
        if each.returns is not None and each.probabilities is not None
    ]
    if not likely:
        return None
    found = np.unique(np.concatenate(likely))
    low, high, bins = float(found[0]), float(found[-1]), min(len(found), MOST_BINS)
    return (low, high, bins) if low < high else (low - 0.5, high + 0.5, 1)
