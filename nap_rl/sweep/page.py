"""report.html of a sweep of trainings, with the sweep's arms; its tables are those of arms.csv."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nap_rl.report import page
from nap_rl.report.visits import SCORES
from nap_rl.sweep.record import Record

ON_THE_PAGE = ("finished", "running")


def write(record: Record, seed_and_settings: Callable[[Path], tuple[int, Mapping[str, Any]]]) -> str | None:
    """Writes the page; returns a line that says where it is, or why it is not there. None without a run for it."""
    if not page.is_installed():
        return f"left out: {page.MISSING}"
    from nap_rl.report.page import runs, training

    found: dict[str, list[runs.Training]] = {}
    left_out = []
    for trial in record.trials:
        if (status := record.status(trial)) not in ON_THE_PAGE:
            left_out.append(f"left out: {trial.folder.name}, {status}")
            continue
        try:
            run = runs.read(trial.folder, *seed_and_settings(trial.folder))
        except (OSError, ValueError, KeyError) as error:
            left_out.append(f"left out: {trial.folder.name}: {error}")
        else:
            found.setdefault(trial.arm.removeprefix("arm=") or "all runs", []).append(run)
    if not found:
        return None
    arms = [runs.TrainingArm(label, of_arm) for label, of_arm in found.items()]
    out = record.folder / page.NAME
    try:
        training.write_page(out, arms, record.folder.absolute().name, score=SCORES[0], left_out=left_out)
    except (OSError, ValueError) as error:  # the sweep itself is done
        return f"left out: {page.NAME}: {error}"
    return f"to look at: {out}"
