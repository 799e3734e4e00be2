"""Forgetting, forward transfer and continual evaluation as CORA defines them (Powers et al. 2022, arXiv 2110.10067).

r[i, j] is the mean return in task i at the last evaluation within visit j; the visits of the first cycle count. With
m_i = max |r_i| over all evaluations of task i in all runs of an arm:

    isolated forgetting          F[i, j] = (r[i, j - 1] - r[i, j]) / m_i,   task i was trained before visit j
    zero-shot forward transfer   Z[i, j] = (r[i, j] - r[i, j - 1]) / m_i,   task i is trained after visit j
    continual evaluation         C(t)    = mean over tasks of r_i(t) / m_i

r[i, -1] is the first evaluation of the run, as in the authors' code (`compute_forward_transfer_metric`). Their tables
show F and Z times 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nap_rl.report.curves import read_rows
from nap_rl.report.statistics import Floats
from nap_rl.report.visits import Run


@dataclass(frozen=True)
class Evaluations:
    """All evaluations of a run: at frame frames[k], returns[i, k] is the mean in tasks[i], NaN if it was not played."""

    tasks: tuple[str, ...]
    frames: Floats  # [K]
    returns: Floats  # [tasks, K]

    def at_ends(self, ends: Sequence[float]) -> Floats:
        """[tasks, 1 + visits] r[i, -1], then r[i, j]; a visit (ends[j - 1], ends[j]] without an evaluation is NaN."""
        table = np.full((len(self.tasks), 1 + len(ends)), np.nan)
        for i, returns in enumerate(self.returns):
            known = np.isfinite(returns)
            frames, played = self.frames[known], returns[known]
            if played.size:
                table[i, 0] = played[0] if known[0] else np.nan
            for j, (begin, end) in enumerate(zip([0.0, *ends], ends, strict=False)):
                within = played[(frames > begin) & (frames <= end)]
                if within.size:
                    table[i, 1 + j] = within[-1]
        return table


@dataclass(frozen=True)
class Continual:
    """One run. F and Z are [tasks, visits of the first cycle], NaN where they are not defined.

    Attributes:
        forgetting, transfer: F and Z.
        evaluation: [K] C(t) at the frames of the evaluations, over the tasks that were played then.
    """

    tasks: tuple[str, ...]
    visits: tuple[str, ...]
    forgetting: Floats
    transfer: Floats
    frames: Floats
    evaluation: Floats

    @property
    def mean_forgetting(self) -> float:
        """Mean of F; NaN if no task was evaluated after it was trained."""
        return _mean(self.forgetting)

    @property
    def mean_transfer(self) -> float:
        """Mean of Z; NaN if no task was evaluated before it was trained."""
        return _mean(self.transfer)


def read_evaluations(run: Path) -> Evaluations:
    """The evaluations of a run.

    Raises FileNotFoundError without evaluations.csv, and ValueError if it is damaged.
    """
    path = Path(run) / "evaluations.csv"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: train with eval.every=FRAMES and eval.tasks=all.")
    names, rows = read_rows(path)
    frame, game, score = (names.index(name) for name in ("frames", "game", "return"))
    of: dict[tuple[float, str], list[float]] = {}
    for row in rows:
        of.setdefault((float(row[frame]), row[game]), []).append(float(row[score]))
    frames = sorted({at for at, _ in of})
    tasks = tuple(dict.fromkeys(task for _, task in of))
    means = [[np.mean(of[at, task]) if (at, task) in of else np.nan for at in frames] for task in tasks]
    return Evaluations(tasks, np.array(frames), np.array(means, dtype=np.float64))


def scales(evaluations: Sequence[Evaluations]) -> dict[str, float]:
    """task -> m_i over the runs of an arm."""
    largest: dict[str, float] = {}
    for each in evaluations:
        for task, returns in zip(each.tasks, each.returns, strict=True):
            largest[task] = max(largest.get(task, 0.0), float(np.nanmax(np.abs(returns))))
    return largest


def continual(run: Run, evaluations: Evaluations, scale: dict[str, float]) -> Continual:
    """CORA's metrics of one run. A task whose every return is 0 has none."""
    first_cycle = [j for j, cycle in enumerate(run.cycles) if cycle == run.cycles[0]]
    trained = tuple(run.tasks[j] for j in first_cycle)
    ends = np.cumsum(run.frames)[: len(first_cycle)]
    r = evaluations.at_ends(ends.tolist())
    m = np.array([scale[task] or np.nan for task in evaluations.tasks])
    change = np.diff(r, axis=1) / m[:, None]  # [tasks, visits] (r[i, j] - r[i, j - 1]) / m_i
    forgetting, transfer = np.full_like(change, np.nan), np.full_like(change, np.nan)
    for i, task in enumerate(evaluations.tasks):
        trained_in = trained.index(task) if task in trained else len(trained)
        forgetting[i, trained_in + 1 :] = -change[i, trained_in + 1 :]
        transfer[i, :trained_in] = change[i, :trained_in]
    shares = evaluations.returns / m[:, None]
    known = np.isfinite(shares)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, shares, 0.0).sum(axis=0) / known.sum(axis=0)
    return Continual(evaluations.tasks, trained, forgetting, transfer, evaluations.frames, mean)


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
