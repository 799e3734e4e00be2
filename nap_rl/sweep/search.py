"""Searches that draw settings instead of trying all: a share of a grid, or of ranges of numbers.

`schedule.start=tag(log,interval(1e-5,1e-2))` is a range on a logarithmic scale, `interval(0,1)` one on a linear scale,
`a,b,c` and `range(...)` are choices. Every draw runs with every seed: `seed=0..2` stays a grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import HydraException

from nap_rl.cli import key_of, sentences
from nap_rl.sweep.grammar import Combination, spans_written_out, values_of

SEED = "seed"
DIGITS = 6  # of a drawn number: folders are named by it

Draw = Callable[[np.random.Generator], str]


def random(overrides: Sequence[str], samples: int, seed: int) -> list[Combination]:
    """`samples` draws, the same for the same seed, each with every value of `seed`.

    Raises:
        ValueError: an override that cannot be read, or nothing to draw from.
    """
    rng = np.random.default_rng(seed)
    axes = [(text, *_axis(text)) for text in overrides if key_of(text) != SEED]
    if not any(several for _, _, several in axes):
        raise ValueError(
            "sweep.search=random has nothing to draw from: give a setting several values, or interval(a,b)"
        )
    seeds = [values_of(text) for text in overrides if key_of(text) == SEED]
    found = []
    for _ in range(samples):
        drawn = [(draw(rng), several) for _, draw, several in axes]
        for chosen in itertools.product(*(axis.overrides for axis in seeds)):
            both = [*drawn, *((text, axis.several) for text, axis in zip(chosen, seeds, strict=True))]
            found.append(Combination(tuple(text for text, _ in both), tuple(text for text, several in both if several)))
    return found


def _axis(text: str) -> tuple[Draw, bool]:
    """How to draw an override, and whether there is more than one."""
    interval = interval_of(text)
    if interval is not None:
        key, low, high, logarithmic = interval
        return lambda rng: f"{key}={_number(rng, low, high, logarithmic)}", True
    axis = values_of(text)
    return lambda rng: axis.overrides[int(rng.integers(len(axis.overrides)))], axis.several


def interval_of(text: str) -> tuple[str, float, float, bool] | None:
    """(key, low, high, whether on a logarithmic scale) of `interval(low, high)`, None for another setting."""
    try:
        override = OverridesParser.create().parse_override(spans_written_out(text))
    except HydraException:
        raise ValueError(sentences.unreadable(text)) from None
    value: Any = override.value()
    if not isinstance(value, IntervalSweep):
        return None
    low, high = float(value.start or 0.0), float(value.end or 0.0)
    logarithmic = "log" in value.tags
    if not low < high or (logarithmic and low <= 0):
        raise ValueError(f"{text}: expected interval(low,high) with low < high" + (", both above 0" * logarithmic))
    return override.get_key_element(), low, high, logarithmic


def _number(rng: np.random.Generator, low: float, high: float, logarithmic: bool) -> str:
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if logarithmic else rng.uniform(low, high)
    return format(value, f".{DIGITS}g")
