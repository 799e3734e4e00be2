"""CORA's metrics of several arms: a table, a CSV file and a picture of the continual evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nap_rl.report.continual import Continual, Evaluations, continual, read_evaluations, scales
from nap_rl.report.drawing import COLOURS, DASHES, FAINT, new_figure, save, style
from nap_rl.report.statistics import Estimate, Floats, estimate
from nap_rl.report.text import aligned, shown, to_csv
from nap_rl.report.visits import Arm

HEADER = ("arm", "seeds", "forgetting", "forward transfer", "final / best")
COLUMNS = ("arm", "seed", "metric", "task", "trained", "value")


class ArmMetrics(NamedTuple):
    """An arm's runs, in the order of their seeds."""

    arm: Arm
    evaluations: list[Evaluations]
    metrics: list[Continual]


def measure(arms: Sequence[Arm]) -> list[ArmMetrics]:
    """Reads the evaluations of every run. Raises as `read_evaluations` does."""
    found = []
    for arm in arms:
        evaluations = [read_evaluations(run.folder) for run in arm.runs]
        scale = scales(evaluations)
        metrics = [continual(run, each, scale) for run, each in zip(arm.runs, evaluations, strict=True)]
        found.append(ArmMetrics(arm, evaluations, metrics))
    return found


def text(found: Sequence[ArmMetrics]) -> str:
    """A line an arm: IQM over seeds, with its interval, of mean F, mean Z and the last C."""
    rows: list[Sequence[str]] = [HEADER]
    for arm, _, metrics in found:
        numbers = (
            [each.mean_forgetting for each in metrics],
            [each.mean_transfer for each in metrics],
            [float(each.evaluation[-1]) for each in metrics],
        )
        rows.append((arm.label, str(len(metrics)), *(shown(_over_seeds(values)) for values in numbers)))
    return "\n".join(aligned(rows, left=1))


def long_csv(found: Sequence[ArmMetrics]) -> str:
    """One row a number: F and Z by task and trained task, C by frame (in the column of the trained task)."""
    lines: list[list[object]] = []
    for arm, _, metrics in found:
        for run, each in zip(arm.runs, metrics, strict=True):
            for name, table in (("forgetting", each.forgetting), ("forward_transfer", each.transfer)):
                for i, j in zip(*np.nonzero(np.isfinite(table)), strict=True):
                    lines.append([arm.label, run.seed, name, each.tasks[i], each.visits[j], table[i, j]])
            for frame, value in zip(each.frames, each.evaluation, strict=True):
                lines.append([arm.label, run.seed, "continual_evaluation", "all", int(frame), value])
    return to_csv(COLUMNS, lines)


def draw(found: Sequence[ArmMetrics], out: Path) -> Path:
    """Draws the return in each task against frames, a panel a task, mean over seeds; grey is where it is trained."""
    tasks = list(dict.fromkeys(task for _, evaluations, _ in found for each in evaluations for task in each.tasks))
    rows = -(-len(tasks) // 2)
    figure = new_figure(height=1.0 + 2.0 * rows)
    grid = figure.subplots(rows, min(len(tasks), 2), sharex=True, squeeze=False)
    for axes in grid.flat[len(tasks) :]:
        axes.remove()
    for axes, task in zip(grid.flat, tasks, strict=False):
        run = found[0].arm.runs[0]
        ends = np.cumsum(run.frames)
        for name, end, length in zip(run.tasks, ends, run.frames, strict=True):
            if name == task:
                axes.axvspan(end - length, end, color=FAINT, alpha=0.2, lw=0)
        for i, (_, evaluations, _) in enumerate(found):
            curves = [_curve(each, task) for each in evaluations if task in each.tasks]
            frames = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
            look = {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[i // len(COLOURS) % len(DASHES)]}
            axes.plot(frames, [np.mean([curve[at] for curve in curves]) for at in frames], lw=1.6, **look)
        axes.set_title(task, loc="left", fontsize=9)
        style(axes, "return", "frames")
    handles = grid.flat[0].lines
    figure.legend(handles, [each.arm.label for each in found], loc="outside lower center", frameon=False, fontsize=8)
    return save(figure, out)


def _curve(evaluations: Evaluations, task: str) -> dict[float, float]:
    returns: Floats = evaluations.returns[evaluations.tasks.index(task)]
    return {
        float(at): float(value) for at, value in zip(evaluations.frames, returns, strict=True) if np.isfinite(value)
    }


def _over_seeds(values: Sequence[float]) -> Estimate | None:
    known = [value for value in values if np.isfinite(value)]
    return estimate(known) if known else None
