"""How far a run is: a live display in a terminal, a plain line every few seconds anywhere else."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO, cast, final

from nap_rl.logging.console import GONE, encodable

if TYPE_CHECKING:
    from rich.console import Group

LIVE_EVERY_SECONDS = 0.2
RECENT_SECONDS = 60.0


@dataclass(frozen=True)
class Status:
    """One moment of a run. None and NaN are shown as "-".

    Attributes:
        fps: frames a second, lately; the time left follows from it.
        episode_return: mean of the last 100 episodes.
        norm_drift: largest |norm / initial norm - 1| of a layer so far.
        waiting: what happens before learning begins, for example "filling the replay: ..."; there is no time left then,
            because learning is slower.
    """

    total_frames: int
    frames: int
    task: str
    cycle: int
    fps: float | None
    episode_return: float | None
    loss: float | None
    norm_drift: float | None
    learning_rate: float | None
    updates: int
    waiting: str | None = None

    @property
    def percent(self) -> float:
        """Share of the frames that are played, 0 to 100."""
        return 100.0 * min(self.frames / max(self.total_frames, 1), 1.0)

    @property
    def time_left(self) -> str:
        """For example "2d 4:03:59", or "-"."""
        if self.waiting is not None or self.fps is None or math.isnan(self.fps) or self.fps <= 0:
            return "-"
        seconds = int(max(self.total_frames - self.frames, 0) / self.fps)
        days, clock = divmod(seconds, 86_400)
        text = f"{clock // 3600}:{clock // 60 % 60:02}:{clock % 60:02}"
        return f"{days}d {text}" if days else text


@final
class RecentRate:
    """How fast a counter grew during the last `seconds`."""

    def __init__(self, seconds: float = RECENT_SECONDS) -> None:
        self._seconds = seconds
        self._seen: deque[tuple[float, int]] = deque()  # (clock, count), a second apart or more

    def __call__(self, count: int) -> float | None:
        """A second, with `count` reached now; None while less than a second is known."""
        now = time.monotonic()
        while len(self._seen) > 1 and self._seen[1][0] <= now - self._seconds:
            self._seen.popleft()
        if not self._seen or now - self._seen[-1][0] >= 1.0:
            self._seen.append((now, count))
        began, before = self._seen[0]
        return (count - before) / (now - began) if now - began >= 1.0 else None

    def restart(self) -> None:
        """Forget the past: from now on the counter grows at another rate."""
        self._seen.clear()


class _Display(Protocol):
    every_seconds: float

    def show(self, status: Status) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


@final
class Progress:
    """Shows one run's progress on `stream` (None: standard error).

    A terminal gets a live display. A pipe or a file gets one plain line of fixed widths every `plain_every_seconds`.
    `update` may be called at every step: between two lines it only reads the clock.

    Output never ends a run. Letters that the stream's encoding lacks are replaced; a stream that can no longer be
    written (closed terminal, broken pipe, full disk) is given up silently.

    Args:
        beside: name of a run that has no display of its own, because another run of this process has it: only warnings
            are printed, behind the name.
    """

    def __init__(
        self, *, stream: TextIO | None = None, plain_every_seconds: float = 10.0, beside: str | None = None
    ) -> None:
        self._beside = beside
        stream = sys.stderr if stream is None else stream
        self._waiting: Status | None = None
        self._next = -math.inf
        live = beside is None and stream.isatty() and os.environ.get("TERM") != "dumb"
        stream = cast(TextIO, _Replacing(stream))
        self._display: _Display | None = _Live(stream) if live else _Plain(stream, plain_every_seconds)

    @property
    def is_due(self) -> bool:
        """Whether `update` would show a status now."""
        return self._display is not None and self._beside is None and time.monotonic() >= self._next

    def update(self, status: Status) -> None:
        """Show the status when it is time for it."""
        if self._display is None or self._beside is not None:
            return
        self._waiting = status
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._display.every_seconds
            self._show()

    def note(self, text: str) -> None:
        """Print one line that stays: a task switch, a checkpoint."""
        if self._display is None:
            return
        if self._beside is not None:
            if not text.startswith("warning"):
                return
            text = f"{self._beside}: {text}"
        try:
            self._display.note(text)
        except GONE:
            self._display = None

    def close(self) -> None:
        """Show the last status, if it has not been shown, and leave the terminal as it was."""
        self._show()
        display, self._display = self._display, None
        if display is not None:
            with suppress(*GONE):
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
        except GONE:
            self._display = None


class _Replacing:
    """A text stream that writes "?" for letters that its encoding lacks."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding: str | None = getattr(stream, "encoding", None)

    def write(self, text: str) -> int:
        return self._stream.write(encodable(text, self.encoding))

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


class _Plain:
    def __init__(self, stream: TextIO, every_seconds: float) -> None:
        self.every_seconds = every_seconds
        self._stream = stream

    def show(self, status: Status) -> None:
        self.note(_line(status))

    def note(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()


class _Live:
    """Two rows at the foot of the terminal. The caller draws them: no thread runs beside the learner."""

    every_seconds = LIVE_EVERY_SECONDS

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(file=stream, force_terminal=True), auto_refresh=False)
        self._live.start()

    def show(self, status: Status) -> None:
        self._live.update(_rows(status), refresh=True)

    def note(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._live.stop()


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, spec)


def _readings(status: Status) -> list[tuple[str, str, int]]:
    """Name, text and width of each reading, in the order shown."""
    return [
        ("fps", _number(status.fps, ",.0f"), 7),
        ("return", _number(status.episode_return, ",.2f"), 10),
        ("loss", _number(status.loss, ".4g"), 9),
        ("drift", _number(status.norm_drift, ".1e"), 8),
        ("lr", _number(status.learning_rate, ".2e"), 8),
        ("updates", f"{status.updates:,}", 10),
    ]


def _line(status: Status) -> str:
    total = f"{status.total_frames:,}"
    head = f"{status.percent:5.1f}%  {status.frames:>{len(total)},} / {total} frames"
    readings = "  ".join(f"{name} {text:>{width}}" for name, text, width in _readings(status))
    line = f"{head}  {status.task:<16} cycle {status.cycle}  {readings}  left {status.time_left:>11}"
    return line if status.waiting is None else f"{line}  {status.waiting}"


def _rows(status: Status) -> Group:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    top = Table.grid(expand=True, padding=(0, 1))
    for ratio in (None, None, 1, None, None):
        top.add_column(ratio=ratio, no_wrap=True)
    top.add_row(
        Text(status.task, style="bold"),
        f"cycle {status.cycle}",
        ProgressBar(total=max(status.total_frames, 1), completed=min(status.frames, status.total_frames)),
        f"{status.frames:,} / {status.total_frames:,} frames",
        f"left {status.time_left}",
    )
    waiting = status.waiting
    shown = _readings(status) if waiting is None else _readings(status)[:2]
    readings = [Text.assemble((f"{name} ", "dim"), text) for name, text, _ in shown]
    readings += [] if waiting is None else [Text(waiting)]
    return Group(top, Text("  ", no_wrap=True, overflow="ellipsis").join(readings))
