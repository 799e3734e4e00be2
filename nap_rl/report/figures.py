"""Figures for documents: drawn at twice the 800 pixels of width at which a page shows them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nap_rl.files import write_atomic
from nap_rl.report.curves import (
    Columns,
    column,
    moving_return,
    read_episodes,
    read_metrics,
    relative_norms,
    task_switches,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES = 8.0
DOTS_PER_INCH = 200
INK = "#222222"
FAINT = "#9a9a9a"
# Okabe and Ito's colours, which readers with colour-blindness tell apart, without the pale yellow.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))


def norms(runs: Sequence[Path], labels: Sequence[str], out: Path) -> Path:
    """Draws each run's parameter norms, relative to their first row, against frames: one panel a run.

    All layers together in black, each layer in its colour (the same in every panel), task switches as
    vertical lines. Returns `out`. Raises FileNotFoundError and ValueError as `relative_norms` does.
    """
    tables = [read_metrics(run) for run in runs]
    curves = [relative_norms(table, run) for table, run in zip(tables, runs, strict=True)]
    layers = list(dict.fromkeys(layer for curve in curves for layer in curve))
    rows = -(-len(runs) // 2)
    figure = _figure(height=0.9 + 2.6 * rows + 0.2 * -(-len(layers) // 4))
    grid = figure.subplots(rows, min(len(runs), 2), sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(runs) :]:
        axes.remove()
    handles = {}
    for axes, label, run, table, curve in zip(grid.flat, labels, runs, tables, curves, strict=False):
        frames = column(table, "frames", run)
        _mark_switches(axes, table)
        for i, layer in enumerate(layers):
            if layer in curve:
                colour = INK if i == 0 else COLOURS[(i - 1) % len(COLOURS)]
                dash = DASHES[(i - 1) // len(COLOURS) % len(DASHES)] if i else "-"
                width = 2.2 if i == 0 else 1.3
                (handles[layer],) = axes.plot(
                    frames, curve[layer], color=colour, ls=dash, lw=width, zorder=3 if i == 0 else 2
                )
        axes.set_title(label, loc="left", fontsize=11, color=INK)
        _frames_axis(axes)
    spread = np.concatenate([values for curve in curves for values in curve.values()])
    if np.nanmax(spread) > 20 * np.nanmin(spread) > 0:
        grid.flat[0].set_yscale("log")
    for axes in grid[:, 0]:
        axes.set_ylabel("parameter norm / its first value")
    shown = [layer for layer in layers if layer in handles]
    figure.legend(
        [handles[layer] for layer in shown],
        shown,
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    return _save(figure, out)


def returns(runs: Sequence[Path], labels: Sequence[str], out: Path, *, window: int = 100) -> Path:
    """Draws episode returns against frames: faint dots, and one line a run for the mean of the last `window`.

    Returns `out`. Raises FileNotFoundError and ValueError as `read_episodes` and `moving_return` do.
    """
    figure = _figure(height=4.4)
    axes = figure.subplots()
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        episodes = read_episodes(run)
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]
        axes.plot(episodes.frames, episodes.returns, ".", color=colour, ms=3, alpha=0.25, mec="none")
        axes.plot(episodes.frames, moving_return(episodes, window), color=colour, ls=dash, lw=1.8, label=label)
    axes.set_ylabel(f"episode return, mean of the last {window}")
    _frames_axis(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return _save(figure, out)


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure  # no pyplot: it would look for a display

    return Figure(figsize=(WIDTH_INCHES, height), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")


def _frames_axis(axes: Axes) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel("emulator frames")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)


def _mark_switches(axes: Axes, table: Columns) -> None:
    switches = task_switches(table)
    for frame in switches:
        axes.axvline(frame, color=FAINT, lw=0.8, ls=(0, (2, 2)), zorder=1)
    if len(switches):
        top = axes.get_xaxis_transform()  # x in frames, y from 0 to 1 of the panel's height
        axes.text(switches[0], 0.99, " task switch", color="#6b6b6b", fontsize=8, va="top", transform=top)


def _save(figure: Figure, out: Path) -> Path:
    """Writes the picture in the format that the suffix of `out` names, PNG without one. The same figure gives the
    same bytes."""
    picture = io.BytesIO()
    kind = Path(out).suffix.removeprefix(".").lower() or "png"
    figure.savefig(picture, format=kind, metadata={"Software": None} if kind == "png" else None)
    return write_atomic(out, picture.getvalue())
