"""What a sequence of tasks shows: scores by visit, arms of runs that differ in their seed alone, and their statistics.

An arm's number for some visits is taken of each run first (the mean over these visits) and then over the runs: the IQM
of the seeds and its bootstrap interval.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_rl.report.arms import named_groups
from nap_rl.report.curves import Columns, read_metrics
from nap_rl.report.layers import ALL, LAYERS, by_layer, is_of_layers
from nap_rl.report.statistics import Estimate, Floats, estimate, iqm, ratio

SCORES = ("late_return", "mean_return", "auc_return")
FRESH = "env.on_switch.network"
"""The setting that is "reset" in the reference arm: a fresh network at each visit."""
NO_RUNS_BELOW = ("checkpoints", "evaluations", ".hydra")


@dataclass(frozen=True)
class Run:
    """The V finished visits of one run. A number that a visit does not have is NaN.

    Attributes:
        settings: by dotted key, without what the runs of an arm may differ in.
        frames: length of each visit.
        scores: a name of `SCORES` -> [V].
        layers: a name of `LAYERS` -> [V] mean over the visit's rows. The effective rate is the geometric mean over
            layers, rotation and dormant units are their mean.
    """

    folder: Path
    seed: int
    settings: Mapping[str, Any]
    tasks: tuple[str, ...]
    cycles: tuple[int, ...]
    frames: tuple[int, ...]
    scores: Mapping[str, Floats]
    layers: Mapping[str, Floats]


@dataclass(frozen=True)
class Arm:
    """Runs of equal settings. `fresh`: each visit has a fresh network."""

    label: str
    settings: Mapping[str, Any]
    runs: Sequence[Run]

    @property
    def fresh(self) -> bool:
        return self.settings.get(FRESH) == "reset"

    @property
    def visits(self) -> int:
        """Visits that all of its runs have finished."""
        return min(len(run.tasks) for run in self.runs)

    @property
    def tasks(self) -> list[str]:
        """The name of each visit's task; "" where the runs have different ones, as in a drawn order."""
        columns = zip(*(run.tasks[: self.visits] for run in self.runs), strict=True)
        return [names[0] if len(set(names)) == 1 else "" for names in columns]

    def scores(self, name: str) -> Floats:
        """[runs, visits]"""
        return np.stack([run.scores[name][: self.visits] for run in self.runs])


def find(folders: Sequence[Path]) -> list[Path]:
    """The folders of runs at and below `folders`, each once: those with a summary.json that lists visits.

    Raises FileNotFoundError if there is none.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        for path in _summaries(Path(folder)):
            if json.loads(path.read_text(encoding="utf-8")).get("visits"):
                found[path.parent] = None
    if not found:
        raise FileNotFoundError(f"There is no summary.json with visits in or below {', '.join(map(str, folders))}.")
    return list(found)


def read(folder: Path, seed: int, settings: Mapping[str, Any], columns: Columns | None = None) -> Run:
    """One run's visits. The last visit of a run that was interrupted is left out: it has no end.

    Args:
        columns: of its metrics.csv, if they are read already.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or no visit is finished.
    """
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    visits = summary["visits"] if summary.get("status") == "finished" else summary["visits"][:-1]
    if not visits:
        raise ValueError(f"{folder} has not finished a visit.")
    if columns is None:
        columns = read_metrics(folder, only=lambda name: is_of_layers(name) or name == "task/index")
    return Run(
        folder=folder,
        seed=seed,
        settings=settings,
        tasks=tuple(visit.get("task", visit.get("game")) for visit in visits),
        cycles=tuple(visit["cycle"] for visit in visits),
        frames=tuple(visit["frames"] for visit in visits),
        scores={name: np.array([visit.get(name) for visit in visits], dtype=np.float64) for name in SCORES},
        layers=_of_layers(columns, folder, len(visits)),
    )


def arms(runs: Sequence[Run], labels: Sequence[str] | None = None) -> list[Arm]:
    """Runs of equal settings together, named by the settings that tell the arms apart, or by `labels` in their order.

    Raises ValueError for another number of labels, or if an arm has the same seed twice.
    """
    found = []
    for name, members in named_groups([run.settings for run in runs], labels):
        of_arm = sorted((runs[i] for i in members), key=lambda run: run.seed)
        for first, second in zip(of_arm, of_arm[1:], strict=False):
            if first.seed == second.seed:
                raise ValueError(f"{first.folder} and {second.folder} have the same settings and the same seed.")
        found.append(Arm(name, of_arm[0].settings, of_arm))
    return found


def reference(arm: Arm, among: Sequence[Arm]) -> Arm | None:
    """The arm of fresh networks that differs from `arm` in the fewest settings; None for a fresh arm or without one."""
    fresh = [other for other in among if other.fresh]
    if arm.fresh or not fresh:
        return None
    keys = {key for other in among for key in other.settings}
    return min(fresh, key=lambda other: sum(other.settings.get(key) != arm.settings.get(key) for key in keys))


def tenth(visits: int) -> int:
    """Visits in the early and in the late tenth: at least one."""
    return max(1, visits // 10)


def over_seeds(scores: Floats) -> Estimate | None:
    """[runs, some visits] -> IQM over runs of their means; None if no visit has a score."""
    means = run_means(scores)
    return estimate(means.tolist()) if means.size else None


def ratio_over_seeds(scores: Floats, fresh: Floats, chance: float = 0.0) -> Estimate | None:
    """(IQM of [runs, some visits] - chance) / (IQM of the fresh networks' - chance); None where that is no share.

    Runs are resampled in both. It is no share of anything if fresh networks do not score above chance.
    """
    ours, theirs = run_means(scores) - chance, run_means(fresh) - chance
    if not ours.size or not theirs.size or iqm(theirs) <= 0:
        return None
    return ratio(ours.tolist(), theirs.tolist())


def by_cycle(arm: Arm, name: str) -> dict[int, dict[str, Floats]]:
    """cycle -> task -> [runs] scores of the task's visit in that cycle."""
    found: dict[int, dict[str, Floats]] = {}
    scores = arm.scores(name)
    for cycle in sorted(set(arm.runs[0].cycles[: arm.visits])):
        of_cycle: dict[str, list[float]] = {}
        for run, values in zip(arm.runs, scores, strict=True):
            for task, visit_cycle, value in zip(run.tasks, run.cycles, values, strict=False):
                if visit_cycle == cycle:
                    of_cycle.setdefault(task, []).append(float(value))
        found[cycle] = {task: np.array(values) for task, values in of_cycle.items()}
    return found


def run_means(scores: Floats) -> Floats:
    """Mean of each run's visits that have a score; a run without any is left out."""
    known = np.isfinite(scores)
    rows = known.any(axis=1)
    means: Floats = np.where(known, scores, 0.0)[rows].sum(axis=1) / known[rows].sum(axis=1)
    return means


def _summaries(folder: Path) -> Iterator[Path]:
    for place, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if name not in NO_RUNS_BELOW)
        if "summary.json" in files:
            yield Path(place) / "summary.json"


def _of_layers(columns: Columns, folder: Path, visits: int) -> dict[str, Floats]:
    """What `Run.layers` holds, NaN for a visit without a row."""
    rows = len(next(iter(columns.values())))
    index = columns.get("task/index", np.zeros(rows))
    layers = by_layer(columns, folder)
    unknown = {ALL: np.full(rows, np.nan)}
    return {name: _by_visit(layers.get(name, unknown)[ALL], index, visits) for name in LAYERS}


def _by_visit(rows: Floats, index: Floats, visits: int) -> Floats:
    """Mean of the rows of each visit."""
    known = np.isfinite(rows) & (index < visits)
    at: NDArray[np.int64] = index[known].astype(np.int64)
    counts = np.bincount(at, minlength=visits)
    with np.errstate(invalid="ignore"):
        means: Floats = np.bincount(at, weights=rows[known], minlength=visits) / counts
    return means
