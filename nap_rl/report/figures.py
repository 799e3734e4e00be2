"""Figures for documents: drawn at twice the 800 pixels of width at which a page shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nap_rl.report.curves import column, moving_return, read_episodes, read_metrics, relative_norms
from nap_rl.report.drawing import COLOURS, DASHES, FAINT, INK, new_figure, save
from nap_rl.report.sequence import Stay, Switch, plan, stays, switches

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


def norms(runs: Sequence[Path], labels: Sequence[str], out: Path) -> Path:
    """Draws each run's parameter norms, relative to their first logged row, against frames: one panel a run.

    All layers together are black. A layer has the same colour in every panel. Vertical lines are task switches, with
    the game that begins. A run with one logged row is drawn as points. Returns `out`.

    Raises FileNotFoundError and ValueError as `relative_norms` does.
    """
    tables = [read_metrics(run) for run in runs]
    curves = [relative_norms(table, run) for table, run in zip(tables, runs, strict=True)]
    layers = list(dict.fromkeys(layer for curve in curves for layer in curve))
    rows = -(-len(runs) // 2)
    figure = new_figure(height=0.9 + 2.6 * rows + 0.2 * -(-len(layers) // 4))
    grid = figure.subplots(rows, min(len(runs), 2), sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(runs) :]:
        axes.remove()
    handles = {}
    for axes, label, run, table, curve in zip(grid.flat, labels, runs, tables, curves, strict=False):
        frames = column(table, "frames", run)
        planned = plan(run)
        _mark_switches(axes, planned, switches(table, planned))
        for i, layer in enumerate(layers):
            if layer in curve:
                colour = INK if i == 0 else COLOURS[(i - 1) % len(COLOURS)]
                dash = DASHES[(i - 1) // len(COLOURS) % len(DASHES)] if i else "-"
                width = 2.2 if i == 0 else 1.3
                marker = "o" if len(frames) == 1 else ""
                (handles[layer],) = axes.plot(
                    frames, curve[layer], color=colour, ls=dash, lw=width, marker=marker, zorder=3 if i == 0 else 2
                )
        axes.set_title(label, loc="left", fontsize=11, color=INK)
        _frames_axis(axes)
        axes.set_xlim(left=0)
    spread = np.concatenate([values for curve in curves for values in curve.values()])
    if np.nanmax(spread) > 20 * np.nanmin(spread) > 0:
        grid.flat[0].set_yscale("log")
    for axes in grid[:, 0]:
        axes.set_ylabel("parameter norm / its first logged value")
    shown = [layer for layer in layers if layer in handles]
    figure.legend(
        [handles[layer] for layer in shown],
        shown,
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    return save(figure, out)


def returns(runs: Sequence[Path], labels: Sequence[str], out: Path, *, window: int = 100) -> Path:
    """Draws episode returns against frames, one panel a game: faint dots, and the mean of the last `window` as a line.

    Each visit to a game is a line of its own, in the colour of its run. If a game is visited again, frames count from
    the beginning of the visit, so that visits lie over each other, and the panel names each switch. Returns `out`.

    Raises FileNotFoundError and ValueError as `read_episodes` and `moving_return` do.
    """
    played = [stays(read_episodes(run), plan(run)) for run in runs]
    games = list(dict.fromkeys(stay.game for visits in played for stay in visits))
    handles: dict[str, Line2D] = {}
    again = any(stay.after is not None for visits in played for stay in visits)
    rows = -(-len(games) // 2)
    figure = new_figure(height=4.4 if rows == 1 else 1.0 + 2.8 * rows)
    grid = figure.subplots(rows, min(len(games), 2), squeeze=False)
    for axes in grid.flat[len(games) :]:
        axes.remove()
    for axes, game in zip(grid.flat, games, strict=False):
        here = [(i, stay) for i, visits in enumerate(played) for stay in visits if stay.game == game]
        for i, stay in here:
            episodes = stay.episodes
            colour, dash = COLOURS[i % len(COLOURS)], DASHES[(i // len(COLOURS) + stay.visit - 1) % len(DASHES)]
            frames = episodes.frames - (stay.begin if again else 0.0)
            axes.plot(frames, episodes.returns, ".", color=colour, ms=3, alpha=0.25, mec="none")
            (line,) = axes.plot(frames, moving_return(episodes, window), color=colour, ls=dash, lw=1.8)
            handles.setdefault(labels[i] + (f", visit {stay.visit}" if again else ""), line)
        axes.set_title(game, loc="left", fontsize=11, color=INK)
        _frames_axis(axes, "emulator frames since the visit began" if again else "emulator frames")
        axes.set_xlim(left=0)
        if again:
            _name_switches(axes, [stay for _, stay in here])
    for axes in grid[:, 0]:
        axes.set_ylabel(f"episode return, mean of the last {window}")
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return save(figure, out)


def _frames_axis(axes: Axes, label: str = "emulator frames") -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)


def _mark_switches(axes: Axes, planned: Sequence[Switch], switched: Sequence[Switch]) -> None:
    """A line at each switch. The games of all visits that have begun stand at their beginnings, if they are known."""
    for switch in switched:
        axes.axvline(switch.frame, color=FAINT, lw=0.8, ls=(0, (2, 2)), zorder=1)
    for switch in [*planned[:1], *switched] if switched else []:
        name = switch.game or ("task switch" if switch is switched[0] else "")
        axes.text(
            switch.frame,
            0.99,
            f" {name}",
            rotation=90,
            color="#6b6b6b",
            fontsize=8,
            va="top",
            transform=axes.get_xaxis_transform(),  # x in frames, y from 0 to 1 of the panel's height
        )


def _name_switches(axes: Axes, visits: Sequence[Stay]) -> None:
    """The switch into each visit, once for runs with the same sequence: "visit 2: after breakout, at 16k"."""
    from matplotlib.ticker import EngFormatter

    number = EngFormatter(sep="")
    lines = [
        f"visit {stay.visit}: "
        + ("at the start" if stay.after is None else f"after {stay.after}, at {number(stay.begin)}")
        for stay in visits
    ]
    axes.text(
        0.01, 0.99, "\n".join(dict.fromkeys(lines)), color="#6b6b6b", fontsize=8, va="top", transform=axes.transAxes
    )
