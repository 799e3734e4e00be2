"""The end of a sweep of trainings: a table by arm with intervals over seeds, and a picture, in the sweep's folder."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from nap_rl.files import write_atomic
from nap_rl.report import figures, visits, visits_figure, visits_table
from nap_rl.report.visits import SCORES, Arm
from nap_rl.sweep import commands
from nap_rl.sweep.record import Record
from nap_rl.sweep.trials import Trial

MOST_DRAWN = 12  # runs in a picture of returns


def write(record: Record) -> str | None:
    """Write arms.csv, arms.md, visits.csv and a picture; returns the table, None if no run has finished.

    An arm's number is the IQM over its seeds of each run's mean, with a 95 % bootstrap interval.
    """
    arms = arms_of(record)
    if not arms:
        return None
    rows = visits_table.rows(arms, SCORES[0])
    written = {
        "arms.csv": visits_table.table_csv(rows),
        "arms.md": visits_table.markdown(rows),
        "visits.csv": visits_table.visits_csv(arms, SCORES[0]),
    }
    for name, content in written.items():
        write_atomic(record.folder / name, content)
    picture = _draw(arms, record.folder)
    return f"{visits_table.text(rows)}\n\nwritten to {record.folder}: {', '.join([*written, *picture])}"


def arms_of(record: Record) -> list[Arm]:
    """The finished runs by arm, in the order of the sweep."""
    found: dict[str, list[Trial]] = {}
    for trial in record.trials:
        if record.status(trial) == "finished":
            found.setdefault(trial.arm, []).append(trial)
    arms = []
    for name, trials in found.items():
        runs = []
        for trial in trials:
            with contextlib.suppress(OSError, ValueError, KeyError):  # its files are damaged: it is left out
                runs.append(visits.read(trial.folder, trial.seed or 0, _settings(trial)))
        if runs:
            arms.append(Arm(name.removeprefix("arm=") or "all runs", runs[0].settings, runs))
    return arms


def score_of(record: Record, trials: Sequence[Trial]) -> float | None:
    """The mean over finished runs of their mean score in the last tenth of their visits; None without a score."""
    scores = []
    for trial in trials:
        if record.command.is_finished(trial.folder):
            visited = commands.summary_of(trial.folder).get("visits") or []
            late = [visit.get(SCORES[0]) for visit in visited[-visits.tenth(len(visited)) :]]
            scores += [sum(late) / len(late)] if late and None not in late else []
    return sum(scores) / len(scores) if scores else None


def _settings(trial: Trial) -> dict[str, str]:
    pairs = (text.partition("=") for text in trial.arguments)
    return {key.lstrip("+"): value for key, _, value in pairs if key != "seed"}


def _draw(arms: list[Arm], folder: Path) -> list[str]:
    if any(arm.visits > 1 for arm in arms):
        visits_figure.draw(arms, folder / "visits.png", SCORES[0])
        return ["visits.png"]
    runs = [(run.folder, f"{arm.label} seed {run.seed}") for arm in arms for run in arm.runs][:MOST_DRAWN]
    with contextlib.suppress(OSError, ValueError):  # no episode has ended
        figures.returns([run for run, _ in runs], [label for _, label in runs], folder / "returns.png")
        return ["returns.png"]
    return []
