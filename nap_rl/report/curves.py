"""Reads the numbers of one run, and the arithmetic on them that figures need. Frames are emulator frames."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Columns = dict[str, Floats]

NORM_PREFIX = "nap/param_norm/"


class NoRowsError(ValueError):
    """A file of a run in which nothing has happened yet."""


@dataclass(frozen=True)
class Episodes:
    """The E rows of episodes.csv, in the order the episodes ended; `frames` is the run's clock by then."""

    frames: Floats  # [E]
    returns: Floats  # [E] unclipped rewards of the whole game
    games: tuple[str, ...]  # E names
    cycles: tuple[int, ...]  # E passes through the sequence of games, from 0

    def __getitem__(self, rows: slice) -> Episodes:
        return Episodes(self.frames[rows], self.returns[rows], self.games[rows], self.cycles[rows])


def read_metrics(run: Path, only: Callable[[str], bool] = lambda name: True) -> Columns:
    """The columns of a run's metrics.csv whose names `only` accepts, float64 [rows] each; an empty cell is NaN.

    Raises FileNotFoundError without the file and ValueError if it has no row or a cell that is no number.
    """
    path = Path(run) / "metrics.csv"
    names, rows = read_rows(path)
    try:
        wanted = [i for i, name in enumerate(names) if only(name)]
        table = np.array([[float(row[i] or "nan") for i in wanted] for row in rows], dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{path} holds something that is no number: {error}.") from error
    return dict(zip((names[i] for i in wanted), table.T, strict=True))


def read_episodes(run: Path) -> Episodes:
    """The rows of a run's episodes.csv.

    Raises FileNotFoundError without the file and ValueError if it has no row or lacks a column.
    """
    path = Path(run) / "episodes.csv"
    names, rows = read_rows(path)
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    missing = {"frames", "return", "game"} - set(names)
    if missing:
        raise ValueError(f"{path} has no column {min(missing)!r}; it has {', '.join(names)}.")
    try:
        frames = np.array(columns["frames"], dtype=np.float64)
        returns = np.array(columns["return"], dtype=np.float64)
        cycles = tuple(map(int, columns.get("cycle", "0" * len(rows))))
    except ValueError as error:
        raise ValueError(f"{path} holds something that is no number: {error}.") from error
    return Episodes(frames, returns, tuple(columns["game"]), cycles)


def column(columns: Columns, name: str, run: Path) -> Floats:
    """One column of `columns`. Raises ValueError naming the nearest one there is if it is missing."""
    if name not in columns:
        near = difflib.get_close_matches(name, columns, n=1, cutoff=0.0)
        raise ValueError(f"{Path(run) / 'metrics.csv'} has no column {name!r}; the nearest is {near[0]!r}.")
    return columns[name]


def moving_return(episodes: Episodes, window: int, rows: NDArray[np.int64] | None = None) -> Floats:
    """float64 [E]: at each episode the mean return of the last `window`, fewer at the beginning of a game.

    The mean starts afresh when the game changes: scores of two games have no common scale. With `rows` [R], only at
    those episodes.
    Raises ValueError for a window below 1.
    """
    if window < 1:
        raise ValueError(f"A moving mean needs a window of at least 1 episode, got {window}.")
    if rows is None:
        rows = np.arange(len(episodes.returns))
    changes = [i for i in range(1, len(episodes.games)) if episodes.games[i] != episodes.games[i - 1]]
    starts = np.array([0, *changes])
    first = np.maximum(starts[np.searchsorted(starts, rows, side="right") - 1], rows + 1 - window)
    return np.array([episodes.returns[i : row + 1].mean() for i, row in zip(first, rows, strict=True)])


def relative_norms(columns: Columns, run: Path) -> Columns:
    """Parameter norms over their first logged value, float64 [rows]: "all layers", then each layer.

    The norm of all layers is the root of the sum of their squares. A layer that starts at zero is left out.
    Raises ValueError if no column nap/param_norm/<layer> is there.
    """
    norms = {name.removeprefix(NORM_PREFIX): values for name, values in columns.items() if name.startswith(NORM_PREFIX)}
    norms.pop("total", None)
    if not norms:
        raise ValueError(f"{Path(run) / 'metrics.csv'} has no column {NORM_PREFIX}<layer>.")
    total = np.sqrt(np.sum([np.square(values) for values in norms.values()], axis=0))
    found = {"all layers": total, **norms}
    relative = {layer: values / values[0] for layer, values in found.items() if values[0] > 0}
    if not relative:
        raise ValueError(f"{Path(run) / 'metrics.csv'} has no parameter norm above zero in its first row.")
    return relative


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file. A last row that a killed run left torn is dropped."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: name the folder of a run.")
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    names, *rows = list(csv.reader(io.StringIO(whole, newline=""))) or [[]]
    if not rows:
        raise NoRowsError(f"{path} has no row yet.")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise ValueError(f"{path}, line {number}: {len(row)} cells under {len(names)} columns.")
    return names, rows
