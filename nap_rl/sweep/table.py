"""What a person sees of a sweep: a line when a run begins or ends, and a table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nap_rl.sweep import commands
from nap_rl.sweep.attempts import Outcome
from nap_rl.sweep.record import Record
from nap_rl.sweep.trials import Trial


class Lines:
    """A line a run, for logs and for terminals alike."""

    def __init__(self, record: Record, *, beginnings: bool) -> None:
        self.record, self.beginnings = record, beginnings

    def begins(self, trial: Trial) -> None:
        if self.beginnings:
            print(f"\n{self._place(trial)} {name_of(trial)} -> {trial.folder}", flush=True)

    def ends(self, trial: Trial, outcome: Outcome) -> None:
        if not self.beginnings:
            print(f"{self._place(trial)} {name_of(trial)}: {described(trial, outcome)}", flush=True)

    def looks(self) -> None:
        pass

    def _place(self, trial: Trial) -> str:
        return f"[{self.record.trials.index(trial) + 1}/{len(self.record.trials)}]"


def name_of(trial: Trial) -> str:
    """The settings that tell a run from the others."""
    return " ".join(trial.differing) or "one run"


def described(trial: Trial, outcome: Outcome) -> str:
    """How a run ended, in a line."""
    if outcome.status != "finished":
        return f"{outcome.status} (code {outcome.code})" + (f": {outcome.reason}" if outcome.reason else "")
    summary = commands.summary_of(trial.folder)
    parts = [outcome.status]
    if "frames" in summary:
        parts.append(f"{summary['frames']:,} frames")
    if (mean := last_return(summary)) is not None:
        parts.append(f"return {mean:.2f}")
    return ", ".join(parts)


def last_return(summary: dict[str, Any]) -> float | None:
    """The mean return of a training's last visit."""
    visits = summary.get("visits") or [{}]
    mean = visits[-1].get("mean_return")
    return mean if isinstance(mean, (int, float)) else None


def runs(record: Record) -> str:
    """A line a run: what differs, how it ended, frames, mean return of its last visit, folder."""
    rows = [("run", "ended", "code", "frames", "return", "folder")]
    for trial in record.trials:
        outcome = record.outcomes.get(trial.folder)
        summary = commands.summary_of(trial.folder) if outcome is not None else {}
        mean = last_return(summary)
        rows.append(
            (
                name_of(trial),
                "not begun" if outcome is None else outcome.status,
                "-" if outcome is None else str(outcome.code),
                f"{summary['frames']:,}" if "frames" in summary else "-",
                "-" if mean is None else f"{mean:.2f}",
                str(trial.folder),
            )
        )
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of equal columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
