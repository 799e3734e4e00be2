"""Groups of runs: those of equal settings, and what tells the groups apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST_SHOWN = 4  # settings that differ, named in one label
Settings = Mapping[str, Any]
"""By dotted key, without what one experiment may vary, such as the seed."""


def group_by_settings(settings: Sequence[Settings]) -> list[tuple[dict[str, Any], list[int]]]:
    """Places of equal settings together, each group with those of its settings in which the groups differ."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, each in enumerate(settings):
        groups.setdefault(identity(each), []).append(i)
    firsts = [settings[members[0]] for members in groups.values()]
    keys = list(dict.fromkeys(key for each in firsts for key in each))
    differing = [key for key in keys if len({repr(each.get(key)) for each in firsts}) > 1]
    return [
        ({key: first[key] for key in differing if key in first}, members)
        for first, members in zip(firsts, groups.values(), strict=True)
    ]


def named_groups(settings: Sequence[Settings], labels: Sequence[str] | None) -> list[tuple[str, list[int]]]:
    """Places of equal settings together, named by the settings that tell the groups apart, or by `labels` in order.

    Raises ValueError for another number of labels.
    """
    groups = group_by_settings(settings)
    named = [label(different) or "all runs" for different, _ in groups]
    if labels is not None and len(labels) != len(groups):
        raise ValueError(f"Give one --label for each of the {len(groups)} arms, in this order: {'; '.join(named)}.")
    return list(zip(named if labels is None else labels, (members for _, members in groups), strict=True))


def identity(settings: Settings) -> tuple[str, ...]:
    """Equal for equal settings, and hashable."""
    return tuple(f"{key}={settings[key]!r}" for key in sorted(settings))


def label(different: Settings) -> str:
    """ "agent.nap=true, nap.project=false": as one would type them, the first `MOST_SHOWN`."""
    shown = [f"{key}={_typed(value)}" for key, value in different.items()]
    if len(shown) > MOST_SHOWN:
        shown = [*shown[:MOST_SHOWN], f"and {len(shown) - MOST_SHOWN} more"]
    return ", ".join(shown)


def _typed(value: Any) -> str:
    if isinstance(value, float):
        return format(value, ".6g")
    return str(value).lower() if isinstance(value, bool) else str(value)
