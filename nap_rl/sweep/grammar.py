"""Settings with several values, and the combinations that they stand for: `seed=0..4 agent.nap=true,false` is ten."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from nap_rl.cli import sentences

_SPAN = re.compile(r"(?<![\w.'\"\[])(-?\d+)\.\.(-?\d+)(?![\w.'\"\]])")
MOST = 1_000_000  # values of one setting


@dataclass(frozen=True)
class Combination:
    """One choice of all values: the settings, and those of them that differ between the runs."""

    overrides: tuple[str, ...]
    differing: tuple[str, ...]


def expand(overrides: Sequence[str]) -> Iterator[Combination]:
    """Every combination: `seed=0,1`, `seed=0..4`, `seed=range(3)`, `agent=dqn,rainbow`, `schedule.start=choice(...)`.

    Raises:
        ValueError: an override that Hydra's grammar does not read, or a setting without any value.
    """
    axes = [values_of(text) for text in overrides]
    for chosen in itertools.product(*(axis.overrides for axis in axes)):
        yield Combination(chosen, tuple(itertools.compress(chosen, (axis.several for axis in axes))))


@dataclass(frozen=True)
class Axis:
    """A setting as it was typed: an override for each of its values, and whether several were meant."""

    overrides: tuple[str, ...]
    several: bool


def values_of(text: str) -> Axis:
    """The values of one setting.

    Raises:
        ValueError: Hydra's grammar does not read it, or it has no value.
    """
    try:
        override = OverridesParser.create().parse_override(spans_written_out(text))
    except HydraException:
        raise ValueError(sentences.unreadable(text)) from None
    several, key = override.is_sweep_override(), override.get_key_element()
    if override.is_delete():
        return Axis((text,), several)
    if not several:
        return Axis((f"{key}={override.get_value_element_as_str()}",), False)
    try:
        values = list(itertools.islice(override.sweep_string_iterator(), MOST + 1))
    except HydraException:  # interval(), which only a search can read
        raise ValueError(f"{text} is a range of numbers without steps: add sweep.search=random") from None
    if not values:
        raise ValueError(f"{text} has no value: a sweep over it is empty")
    if len(values) > MOST:
        raise ValueError(f"{text} has more than {MOST:,} values")
    return Axis(tuple(f"{key}={value}" for value in values), True)


def spans_written_out(text: str) -> str:
    """`seed=0..3,7` -> `seed=0,1,2,3,7`; everything else stays.

    Raises:
        ValueError: a span that ends before it begins.
    """
    key, given, value = text.partition("=")

    def written_out(span: re.Match[str]) -> str:
        first, last = int(span[1]), int(span[2])
        if last < first:
            raise ValueError(f"{text} has no value: {first}..{last} ends before it begins")
        if last - first >= MOST:
            raise ValueError(f"{text} has more than {MOST:,} values")
        return ",".join(map(str, range(first, last + 1)))

    return f"{key}{given}{_SPAN.sub(written_out, value)}"
