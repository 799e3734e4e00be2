"""A table of the runs under a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nap_rl.report.curves import moving_return, read_episodes, read_metrics
from nap_rl.report.text import aligned

HEADERS = ("run", "status", "frames", "fps", "last return", "norm drift")
WINDOW = 100  # episodes in the last return


def runs_table(folder: Path) -> str:
    """One line a run found anywhere under `folder`, in the order of their paths. Studies are counted below it.

    From summary.json: status, emulator frames, frames a second, the largest relative norm drift
    (nap.max_relative_norm_drift). From episodes.csv: the mean return of the last 100 episodes of the last
    game. A run without a summary is running or was killed: its frames are those of the last row of metrics.csv.
    "-" stands for what is missing or null.

    Raises FileNotFoundError if no run is there, ValueError for a damaged file.
    """
    folder = Path(folder)
    names = ("summary.json", "metrics.csv")
    runs = sorted({path.parent for name in names for path in folder.rglob(name)})
    if not runs:
        raise FileNotFoundError(f"There is no summary.json under {folder}, nor a metrics.csv: name a folder of runs.")
    summaries = {run: _summary(run / "summary.json") for run in runs}
    studies = [run for run, summary in summaries.items() if "study" in (summary.get("config") or {})]
    rows = [HEADERS, *(_row(run, summaries[run], folder) for run in runs if run not in studies)]
    lines = aligned(rows, left=2) if len(rows) > 1 else []
    if studies:
        lines.append(f"left out: {len(studies)} of studies, which `python study.py report FOLDER` shows")
    return "\n".join(lines)


def _summary(path: Path) -> dict[str, Any]:
    """The values of summary.json, {} without the file."""
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(summary, dict):
        raise ValueError(f"{path} holds a {type(summary).__name__}, not the values of a run.")
    return summary


def _row(run: Path, summary: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    nap = summary.get("nap")
    return (
        str(run.relative_to(folder)),
        str(summary.get("status") or "-"),
        _number(summary, "frames", ",.0f") if summary else _frames_so_far(run),
        _number(summary, "fps", ",.0f"),
        _last_return(run),
        _number(nap if isinstance(nap, dict) else {}, "max_relative_norm_drift", ".1e"),
    )


def _frames_so_far(run: Path) -> str:
    try:
        return format(read_metrics(run)["frames"][-1], ",.0f")
    except (ValueError, KeyError):  # no row yet
        return "-"


def _number(values: Mapping[str, Any], key: str, spec: str) -> str:
    value = values.get(key)
    return format(value, spec) if isinstance(value, (int, float)) else "-"


def _last_return(run: Path) -> str:
    path = run / "episodes.csv"
    if not path.is_file() or path.read_bytes().count(b"\n") < 2:  # no episode has ended
        return "-"
    episodes = read_episodes(run)
    return format(moving_return(episodes[-WINDOW:], WINDOW)[-1], ",.2f")
