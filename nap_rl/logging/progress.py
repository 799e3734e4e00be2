"""How far a run is: a live display in a terminal, a plain line every so often anywhere else."""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO, final

if TYPE_CHECKING:
    from rich.console import Group

LIVE_EVERY_SECONDS = 0.2


@dataclass(frozen=True)
class _Status:
    """One moment of a run, as the display shows it. None and NaN are shown as "-"."""

    total_frames: int
    frames: int
    game: str
    cycle: int
    fps: float | None
    episode_return: float | None
    loss: float | None
    norm_drift: float | None
    learning_rate: float | None
    updates: int

    @property
    def percent(self) -> float:
        return 100.0 * min(self.frames / max(self.total_frames, 1), 1.0)

    @property
    def time_left(self) -> str:
        if _missing(self.fps) or self.fps is None or self.fps <= 0:
            return "-"
        seconds = int(max(self.total_frames - self.frames, 0) / self.fps)
        days, clock = divmod(seconds, 86_400)
        text = f"{clock // 3600}:{clock // 60 % 60:02}:{clock % 60:02}"
        return f"{days}d {text}" if days else text


class _Display(Protocol):
    every_seconds: float

    def show(self, status: _Status) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


@final
class Progress:
    """Shows one run's progress on `stream` (standard error if None).

    A terminal gets a live display; a pipe or a file one plain line of fixed widths every
    `plain_every_seconds`. Calls in between cost one clock reading, so `update` may be called every step. A
    stream that can no longer be written (a closed terminal, a broken pipe) silences the display and never
    stops the run.
    """

    def __init__(self, total_frames: int, *, stream: TextIO | None = None, plain_every_seconds: float = 10.0) -> None:
        stream = sys.stderr if stream is None else stream
        self._total_frames = total_frames
        self._waiting: _Status | None = None
        self._next = -math.inf
        live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._display: _Display | None = _Live(stream) if live else _Plain(stream, plain_every_seconds)

    def update(
        self,
        *,
        frames: int,
        game: str,
        cycle: int,
        fps: float | None,
        episode_return: float | None,
        loss: float | None,
        norm_drift: float | None,
        learning_rate: float | None,
        updates: int,
    ) -> None:
        """Takes the run's state. `frames` and `fps` count emulator frames, 4 to an agent step.

        `episode_return` is the mean of the last 100 episodes. None and NaN are shown as "-".
        """
        if self._display is None:
            return
        self._waiting = _Status(
            self._total_frames,
            frames,
            game,
            cycle,
            fps,
            episode_return,
            loss,
            norm_drift,
            learning_rate,
            updates,
        )
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._display.every_seconds
            self._show()

    def note(self, text: str) -> None:
        """Prints one line that stays: a task switch, a checkpoint."""
        if self._display is None:
            return
        try:
            self._display.note(text)
        except OSError:
            self._display = None

    def close(self) -> None:
        """Shows the last state given, if it has not been shown, and leaves the terminal as it was."""
        self._show()
        display, self._display = self._display, None
        if display is not None:
            with suppress(OSError):  # the stream is gone, and there is nothing left to say
                display.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _show(self) -> None:
        status, self._waiting = self._waiting, None
        if status is None or self._display is None:
            return
        try:
            self._display.show(status)
        except OSError:
            self._display = None


class _Plain:
    def __init__(self, stream: TextIO, every_seconds: float) -> None:
        self.every_seconds = every_seconds
        self._stream = stream

    def show(self, status: _Status) -> None:
        self.note(_line(status))

    def note(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()


class _Live:
    """Two rows at the foot of the terminal, drawn by the caller: no thread runs beside the learner."""

    every_seconds = LIVE_EVERY_SECONDS

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(file=stream, force_terminal=True), auto_refresh=False)
        self._live.start()

    def show(self, status: _Status) -> None:
        self._live.update(_rows(status), refresh=True)

    def note(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._live.stop()


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, spec)


def _readings(status: _Status) -> list[tuple[str, str, int]]:
    """Name, text and width of each reading, in the order shown."""
    return [
        ("fps", _number(status.fps, ",.0f"), 7),
        ("return", _number(status.episode_return, ",.2f"), 10),
        ("loss", _number(status.loss, ".4g"), 9),
        ("drift", _number(status.norm_drift, ".1e"), 8),
        ("lr", _number(status.learning_rate, ".2e"), 8),
        ("updates", f"{status.updates:,}", 10),
    ]


def _line(status: _Status) -> str:
    total = f"{status.total_frames:,}"
    head = f"{status.percent:5.1f}%  {status.frames:>{len(total)},} / {total} frames"
    readings = "  ".join(f"{name} {text:>{width}}" for name, text, width in _readings(status))
    return f"{head}  {status.game:<16} cycle {status.cycle}  {readings}  left {status.time_left:>11}"


def _rows(status: _Status) -> Group:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    top = Table.grid(expand=True, padding=(0, 1))
    for ratio in (None, None, 1, None, None):
        top.add_column(ratio=ratio, no_wrap=True)
    top.add_row(
        Text(status.game, style="bold"),
        f"cycle {status.cycle}",
        ProgressBar(total=max(status.total_frames, 1), completed=min(status.frames, status.total_frames)),
        f"{status.frames:,} / {status.total_frames:,} frames",
        f"left {status.time_left}",
    )
    readings = Text("  ", no_wrap=True, overflow="ellipsis").join(
        Text.assemble((f"{name} ", "dim"), text) for name, text, _ in _readings(status)
    )
    return Group(top, readings)
