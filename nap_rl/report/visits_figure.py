"""The arms of a sequence as a picture: scores by visit, first against second visits, and what becomes of layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nap_rl.report.drawing import COLOURS, FAINT, INK, look, new_figure, save, style
from nap_rl.report.layers import LAYERS, ON_A_LOG_SCALE
from nap_rl.report.statistics import iqm
from nap_rl.report.visits import Arm, by_cycle, reference
from nap_rl.report.visits_table import curve, neighbours, of_layers, share_of_fresh

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED = 24  # visits or tasks that are named on an axis
WORDS = {
    "late_return": "return late in the visit",
    "mean_return": "mean return of the visit",
    "auc_return": "area under the visit's curve",
}


def draw(arms: Sequence[Arm], out: Path, score: str, chance: float = 0.0) -> Path:
    """Panels below each other, one line an arm; bands are 95 % bootstrap intervals of the IQM over seeds.

    Score by visit; share of the fresh arm, if there is one; tasks by cycle, if there are several; what `LAYERS` names.
    Long sequences are drawn as means over neighbouring visits, at most 100 points. Returns `out`.
    """
    fresh = any(arm.fresh for arm in arms)
    again = any(len(set(arm.runs[0].cycles)) > 1 for arm in arms)
    panels = 1 + len(LAYERS) + fresh + again
    figure = new_figure(height=0.8 + 2.2 * panels)
    axes = iter(figure.subplots(panels, 1))
    _scores(next(axes), arms, score)
    if fresh:
        _shares(next(axes), arms, score, chance)
    if again:
        _cycles(next(axes), arms, score)
    for name in LAYERS:
        _layers(next(axes), arms, name)
    handles = [figure.axes[0].lines[i] for i in range(len(arms))]
    figure.legend(handles, [arm.label for arm in arms], loc="outside lower center", ncols=1, frameon=False, fontsize=8)
    return save(figure, out)


def _scores(axes: Axes, arms: Sequence[Arm], score: str) -> None:
    for i, arm in enumerate(arms):
        pooled, at = neighbours(arm.scores(score))
        middle, low, high = curve(pooled)
        axes.plot(at, middle, **_look(i, at.size))
        if len(arm.runs) > 1:
            axes.fill_between(at, low, high, color=COLOURS[i % len(COLOURS)], alpha=0.18, lw=0)
    style(axes, WORDS[score])
    longest = max(arms, key=lambda arm: arm.visits)
    if 1 < longest.visits <= MOST_NAMED:
        for visit, task in enumerate(longest.tasks):
            axes.axvline(visit - 0.5, color=FAINT, lw=0.5, ls=(0, (2, 2)), zorder=1)
            axes.text(visit, 1.01, task, rotation=60, fontsize=7, color="#6b6b6b", transform=axes.get_xaxis_transform())


def _shares(axes: Axes, arms: Sequence[Arm], score: str, chance: float) -> None:
    for i, arm in enumerate(arms):
        fresh = reference(arm, arms)
        if fresh is not None:
            shares, at = neighbours(share_of_fresh(arm, fresh, score, chance)[None])
            axes.plot(at, shares[0], **_look(i, at.size))
    axes.axhline(1.0, color=INK, lw=0.8, ls=":")
    style(axes, "share of a fresh network's" + (f", above {chance:g}" if chance else ""))


def _cycles(axes: Axes, arms: Sequence[Arm], score: str) -> None:
    """Every task's visit in the first cycle (hollow) and in the later ones (filled), in the order of the first."""
    order = list(dict.fromkeys(task for arm in arms for task in arm.runs[0].tasks))
    for i, arm in enumerate(arms):
        for cycle, by_task in by_cycle(arm, score).items():
            at = np.array([order.index(task) for task in by_task]) + 0.12 * (i - (len(arms) - 1) / 2)
            colour = COLOURS[i % len(COLOURS)]
            face = "none" if cycle == 0 else colour
            axes.plot(at, [iqm(of) for of in by_task.values()], "o^sD"[cycle % 4], mec=colour, mfc=face, ms=4, lw=0)
    style(axes, "first visit (hollow), later (filled)", "task")
    if len(order) <= MOST_NAMED:
        axes.set_xticks(range(len(order)), order, rotation=30, fontsize=7, ha="right")


def _layers(axes: Axes, arms: Sequence[Arm], name: str) -> None:
    for i, arm in enumerate(arms):
        (pooled,), at = neighbours(of_layers(arm, name)[None])
        known = np.isfinite(pooled)  # diagnostics come every so many updates, not in each visit
        axes.plot(at[known], pooled[known], **_look(i, int(known.sum())))
    style(axes, LAYERS[name])
    if name in ON_A_LOG_SCALE:
        axes.set_yscale("log", nonpositive="clip")


def _look(i: int, points: int) -> dict[str, Any]:
    return look(i, marker="." if points <= MOST_NAMED else "")
