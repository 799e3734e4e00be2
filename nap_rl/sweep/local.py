"""The runs of a sweep one after the other on this machine, each a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from nap_rl.cli import quoted
from nap_rl.sweep.trials import Trial

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class _Forwarding:
    """Within it a signal goes on to the run at hand, and is noted in `received`."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Forwarding:
        self._before = {number: signal.signal(number, self._forward) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str]) -> int:
        """The exit code of `command`; that of a process that a signal ended is 128 + signal."""
        # A session of its own: Ctrl-C reaches it through us alone, and so once.
        self._process = subprocess.Popen(command, start_new_session=True)
        if self.received is not None:  # while it was being started
            self._process.send_signal(self.received)
        code = self._process.wait()
        self._process = None
        return code if code >= 0 else 128 - code

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)


def run(trials: Sequence[Trial], command: Sequence[str]) -> int:
    """Run all trials with `command` and their arguments; a line before each, a table at the end.

    A signal stops the run at hand, with its checkpoint, and the sweep. A run that fails does not.

    Returns:
        128 + signal, else the highest exit code of a run.
    """
    codes: list[int] = []
    with _Forwarding() as signals:
        for number, trial in enumerate(trials, 1):
            print(f"\n[{number}/{len(trials)}] {' '.join(trial.differing) or 'one run'} -> {trial.folder}", flush=True)
            codes.append(signals.run([*command, *trial.arguments, f"hydra.run.dir={quoted(str(trial.folder))}"]))
            if signals.received is not None or codes[-1] in {128 + number for number in STOPPING}:
                break
    print(f"\n{table(trials, codes)}", flush=True)
    if signals.received is not None:
        return 128 + signals.received
    return codes[-1] if codes[-1] in {128 + number for number in STOPPING} else max(codes)


def table(trials: Sequence[Trial], codes: Sequence[int]) -> str:
    """A line a run: what differs, how it ended, frames, mean return of its last visit, folder."""
    rows = [("run", "ended", "code", "frames", "return", "folder")]
    for i, trial in enumerate(trials):
        summary = _summary(trial.folder) if i < len(codes) else None
        visits = summary["visits"] if summary else []
        mean = visits[-1]["mean_return"] if visits else None
        rows.append(
            (
                " ".join(trial.differing) or "one run",
                summary["status"] if summary else "failed" if i < len(codes) else "not begun",
                str(codes[i]) if i < len(codes) else "-",
                f"{summary['frames']:,}" if summary else "-",
                "-" if mean is None else f"{mean:.2f}",
                str(trial.folder),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _summary(folder: Path) -> dict[str, Any] | None:
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary
