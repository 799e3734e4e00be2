"""A table of the runs under a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nap_rl.report.curves import Episodes, moving_return, read_episodes

HEADERS = ("run", "status", "frames", "fps", "last return", "norm drift")
WINDOW = 100  # episodes in the last return


def runs_table(folder: Path) -> str:
    """One line a run found anywhere under `folder`, in the order of their paths.

    From summary.json: status, emulator frames, frames a second, the largest relative norm drift
    (nap.max_relative_norm_drift). From episodes.csv: the mean return of the last 100 episodes of the last
    game. "-" stands for what is missing or null. Raises FileNotFoundError if no run is there, ValueError for
    a damaged file.
    """
    folder = Path(folder)
    paths = sorted(folder.rglob("summary.json"))
    if not paths:
        raise FileNotFoundError(f"There is no summary.json under {folder}: name a folder of runs.")
    rows = [HEADERS] + [_row(path, folder) for path in paths]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADERS))]
    lines = ["  ".join([*map(str.ljust, row[:2], widths[:2]), *map(str.rjust, row[2:], widths[2:])]) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def _row(path: Path, folder: Path) -> tuple[str, ...]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(summary, dict):
        raise ValueError(f"{path} holds a {type(summary).__name__}, not the values of a run.")
    nap = summary.get("nap")
    return (
        str(path.parent.relative_to(folder)),
        str(summary.get("status") or "-"),
        _number(summary, "frames", ",.0f"),
        _number(summary, "fps", ",.0f"),
        _last_return(path.parent),
        _number(nap if isinstance(nap, dict) else {}, "max_relative_norm_drift", ".1e"),
    )


def _number(values: Mapping[str, Any], key: str, spec: str) -> str:
    value = values.get(key)
    return format(value, spec) if isinstance(value, (int, float)) else "-"


def _last_return(run: Path) -> str:
    path = run / "episodes.csv"
    if not path.is_file() or path.read_bytes().count(b"\n") < 2:  # no episode has ended
        return "-"
    episodes = read_episodes(run)
    last = Episodes(episodes.frames[-WINDOW:], episodes.returns[-WINDOW:], episodes.games[-WINDOW:])
    return format(moving_return(last, WINDOW)[-1], ",.2f")
