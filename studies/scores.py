"""Scores of stationary studies: which arm, at which learning rate, how well."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nap_rl.report.statistics import mean_interval

LOWER_IS_BETTER = ("loss", "perplexity")
SAME_ARM = ("seed", "learning_rate", "variant")  # settings that do not name an arm beside its variant
Row = dict[str, Any]


def name_arms(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The variant of each study, with the other settings that differ: "nap", or "nap existing=replace"."""
    flat = [dict(_flat(config)) for config in configs]
    keys = sorted({key for each in flat for key in each} - set(SAME_ARM))
    differing = [key for key in keys if len({repr(each.get(key)) for each in flat}) > 1]
    return [" ".join([each["variant"], *(f"{key}={each.get(key)}" for key in differing)]) for each in flat]


def rows(arms: Sequence[str], configs: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, float]]) -> list[Row]:
    """A row an arm and rate: mean of each score over seeds, low and high ends of its 95 % interval, and `best`.

    `best` marks each arm's best rate, by the mean of the first score.
    """
    groups: dict[tuple[str, float], list[Mapping[str, float]]] = defaultdict(list)
    for arm, config, score in zip(arms, configs, scores, strict=True):
        groups[arm, config["learning_rate"]].append(score)
    names = list(scores[0])
    table: list[Row] = []
    for (arm, rate), runs in sorted(groups.items()):
        row: Row = {"arm": arm, "learning_rate": rate, "seeds": len(runs)}
        for name in names:
            values = np.array([[run[name]] for run in runs])
            low, high = mean_interval(values)
            row |= {name: float(values.mean()), f"{name}_low": float(low[0]), f"{name}_high": float(high[0])}
        table.append(row)
    sign = -1 if names[0].rpartition("/")[2].startswith(LOWER_IS_BETTER) else 1
    for arm in {row["arm"] for row in table}:
        best = max((row for row in table if row["arm"] == arm), key=lambda row: sign * row[names[0]])
        best["best"] = True
    return [{**row, "best": row.get("best", False)} for row in table]


def markdown(table: Sequence[Row]) -> str:
    """The rows as a table; an arm's best rate is marked by a star."""
    names = [key.removesuffix("_low") for key in table[0] if key.endswith("_low")]
    lines = [
        f"| arm | rate | seeds | {' | '.join(f'{name} [95 %]' for name in names)} |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for row in table:
        cells = [f"{row[name]:.4f} [{row[f'{name}_low']:.4f}, {row[f'{name}_high']:.4f}]" for name in names]
        star = " *" if row["best"] else ""
        lines.append(f"| {row['arm']} | {row['learning_rate']:g}{star} | {row['seeds']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def csv(table: Sequence[Row]) -> str:
    """The rows as CSV."""
    return "\n".join(",".join(map(str, row)) for row in (table[0], *(row.values() for row in table))) + "\n"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
