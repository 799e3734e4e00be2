"""A sweep in a terminal: a table of the runs at hand that is drawn anew every second, and lines above it."""

from __future__ import annotations

import csv
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from rich.live import Live
from rich.table import Table

from nap_rl.sweep.attempts import Outcome
from nap_rl.sweep.record import Record
from nap_rl.sweep.table import Lines
from nap_rl.sweep.trials import Trial

EVERY_SECONDS = 1.0
MOST_ROWS = 30
TAIL_BYTES = 1 << 16  # longer than a row of metrics.csv


class Progress(NamedTuple):
    """The last row of metrics.csv; None: not known."""

    frames: int | None = None
    fps: float | None = None
    episode_return: float | None = None


class LiveTable(Lines):
    """Within it the table is on the screen."""

    def __init__(self, record: Record) -> None:
        super().__init__(record, beginnings=False)
        self._live = Live(auto_refresh=False, transient=True)
        self._running: dict[Path, Trial] = {}
        self._drawn = 0.0

    def __getstate__(self) -> dict[str, object]:
        """Without the screen, which cannot be pickled: Ray Tune pickles its callbacks into a file that nobody reads."""
        return {name: value for name, value in vars(self).items() if name != "_live"}

    def __enter__(self) -> LiveTable:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def begins(self, trial: Trial) -> None:
        self._running[trial.folder] = trial

    def ends(self, trial: Trial, outcome: Outcome) -> None:
        self._running.pop(trial.folder, None)
        super().ends(trial, outcome)  # rich prints it above the table

    def looks(self) -> None:
        if time.monotonic() - self._drawn >= EVERY_SECONDS:
            self._drawn = time.monotonic()
            self._live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """A row for each run at hand, and how many wait and are done."""
        done, at_hand = len(self.record.outcomes), len(self._running)
        waiting = len(self.record.trials) - done - at_hand
        table = Table(title=f"{done} done, {at_hand} at hand, {waiting} waiting", title_justify="left")
        for name in ("arm", "seed", "frames", "return", "frames/s", "time left"):
            table.add_column(name, justify="left" if name == "arm" else "right")
        for trial in list(self._running.values())[:MOST_ROWS]:
            table.add_row(*cells(trial, progress_of(trial.folder)))
        return table


def cells(trial: Trial, progress: Progress) -> tuple[str, ...]:
    """The row of a run."""
    frames, fps, mean = progress
    left = None if not (trial.frames and frames and fps) else max(trial.frames - frames, 0) / fps
    return (
        trial.arm or "-",
        "-" if trial.seed is None else str(trial.seed),
        "-" if frames is None else f"{frames:,}" + (f" of {trial.frames:,}" if trial.frames else ""),
        "-" if mean is None else f"{mean:.2f}",
        "-" if fps is None else f"{fps:,.0f}",
        "-" if left is None else f"{int(left) // 3600}:{int(left) // 60 % 60:02}:{int(left) % 60:02}",
    )


def progress_of(folder: Path) -> Progress:
    """How far a run is, by the last whole row of its metrics.csv."""
    with suppress(OSError, ValueError, StopIteration, KeyError), open(folder / "metrics.csv", "rb") as file:
        names = next(csv.reader([file.readline().decode()]))
        head = file.tell()
        file.seek(max(file.seek(0, 2) - TAIL_BYTES, head))
        lines = (
            file.read().decode("utf-8", "replace").split("\n")[:-1]
        )  # what follows the last line break is half a row
        row = dict(zip(names, next(csv.reader(lines[-1:])), strict=True))
        fps, mean = row["time/fps"], row["rollout/ep_rew_mean"]
        return Progress(int(float(row["frames"])), float(fps) if fps else None, float(mean) if mean else None)
    return Progress()
