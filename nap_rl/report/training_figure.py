"""The arms of trainings against frames: returns with their spread over seeds, and what becomes of layers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nap_rl.report.drawing import COLOURS, look, new_figure, save, style
from nap_rl.report.layers import ALL, LAYERS, ON_A_LOG_SCALE
from nap_rl.report.page.runs import WINDOW, TrainingArm, grid, longest
from nap_rl.report.statistics import Floats
from nap_rl.report.visits_table import curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 50
"""Of a curve."""
FRAMES = "emulator frames"


def draw(arms: Sequence[TrainingArm], out: Path) -> Path:
    """Panels below each other, one line an arm; bands are 95 % bootstrap intervals of the IQM over seeds.

    Returns; then of `LAYERS` what some run logged. Returns `out`.
    """
    frames = _frames(arms)
    logged = [name for name in LAYERS if any(ALL in run.layers.get(name, {}) for arm in arms for run in arm.runs)]
    figure = new_figure(height=0.8 + 2.2 * (1 + len(logged)))
    first, *others = figure.subplots(1 + len(logged), 1, squeeze=False)[:, 0]
    _returns(first, arms, frames)
    for axes, name in zip(others, logged, strict=True):
        _layers(axes, arms, name, frames)
    figure.legend(
        first.lines[: len(arms)], [arm.label for arm in arms], loc="outside lower center", frameon=False, fontsize=8
    )
    return save(figure, out)


def returns_csv(arms: Sequence[TrainingArm]) -> str:
    """arm, seed, frames, return: mean of the last `WINDOW` episodes, at the frames of the picture."""
    frames = _frames(arms)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["arm", "seed", "frames", "return"])
    for arm in arms:
        played = [run for run in arm.runs if run.episodes is not None]
        for run, returns in zip(played, arm.returns(frames), strict=True):
            known = np.isfinite(returns)
            table.writerows(
                [arm.label, run.seed, round(at), round(value, 4)]
                for at, value in zip(frames[known].tolist(), returns[known].tolist(), strict=True)
            )
    return text.getvalue()


def _frames(arms: Sequence[TrainingArm]) -> Floats:
    return grid(longest([run for arm in arms for run in arm.runs]), POINTS)


def _returns(axes: Axes, arms: Sequence[TrainingArm], frames: Floats) -> None:
    for i, arm in enumerate(arms):
        returns = arm.returns(frames)
        known = np.isfinite(returns).all(axis=0) if len(returns) else np.zeros(frames.size, dtype=bool)
        middle, low, high = curve(returns[:, known]) if known.any() else (frames[known],) * 3
        axes.plot(frames[known], middle, **look(i))
        if len(returns) > 1:
            axes.fill_between(frames[known], low, high, color=COLOURS[i % len(COLOURS)], alpha=0.18, lw=0)
    style(axes, f"return, mean of the last {WINDOW}", FRAMES)


def _layers(axes: Axes, arms: Sequence[TrainingArm], name: str, frames: Floats) -> None:
    for i, arm in enumerate(arms):
        values = arm.layer(name, ALL, frames)
        known = np.isfinite(values)
        axes.plot(frames[known], values[known], **look(i))
    style(axes, LAYERS[name], FRAMES)
    if name in ON_A_LOG_SCALE:
        axes.set_yscale("log", nonpositive="clip")
