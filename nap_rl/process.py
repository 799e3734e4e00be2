"""What a process needs around a run: signals that are noted, and a folder that no other process has."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO


class StopSignals:
    """Within it SIGINT, SIGTERM and SIGUSR1 are only noted in `received`. A second Ctrl-C interrupts at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: int | None = None  # the first one's number

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number  # whatever comes later, the first one is the exit code's


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Within it no other process has `folder`. The lock is the kernel's and dies with the process.

    Raises:
        BlockingIOError: another process has it; says which.
    """
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise BlockingIOError(f"{folder} is in use by another process ({owner})") from None
        except OSError as error:  # a file system without locks
            warnings.warn(f"{folder} cannot be locked: {error}. Start no second process on it.", stacklevel=2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


class RunsHere:
    """Within it this process counts as a run on this machine, and `count` says how many runs of this user there are.

    Each run holds the lock of a file of its own; the kernel takes the lock back when a process dies.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = Path(tempfile.gettempdir()) / f"nap_rl-{os.getuid()}" if folder is None else folder
        self._file: IO[str] | None = None

    def __enter__(self) -> RunsHere:
        with suppress(OSError):  # a machine without such a folder, or without locks
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self._file = open(self.folder / f"run-{os.getpid()}", "w", encoding="ascii")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.unlink(self._file.name)
            self._file.close()

    def count(self) -> int:
        """Runs on this machine, this one among them."""
        others = 0
        with suppress(OSError):
            for path in self.folder.glob("run-*"):
                others += path.name != f"run-{os.getpid()}" and self._is_held(path)
        return 1 + others

    @staticmethod
    def _is_held(path: Path) -> bool:
        """Whether a process holds the lock; the file of one that died is removed."""
        try:
            with open(path, encoding="ascii") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False
