"""One run of a sweep as a process of its own, started again after each death until it has come to an end."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import nap_rl
from nap_rl.sweep import commands
from nap_rl.sweep.commands import Command
from nap_rl.sweep.trials import Trial

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
STOPPED_CODES = {128 + number for number in STOPPING}
REFUSED, DIVERGED, CANNOT_WRITE = 2, 3, 4
LOCK = ".trial.lock"
DEATHS, FAILURES = 5, 2
"""Deaths in a row without a new checkpoint after which a run is given up: by a signal, by an exit code."""


class Outcome(NamedTuple):
    """How a run ended: finished | interrupted | diverged | refused | failed | stopped (by a search)."""

    status: str
    code: int
    reason: str | None = None


@dataclass(frozen=True)
class Surroundings:
    """What the process of a run is given.

    Attributes:
        threads: of each operation; None leaves it to the command.
        environment: variables, over those of this process.
        show: its output goes to this terminal, not into output.log.
    """

    threads: int | None = None
    environment: Mapping[str, str] | None = None
    show: bool = False


class TrialRun:
    """A run that is being brought to its end; nothing here waits."""

    def __init__(self, trial: Trial, command: Command, surroundings: Surroundings) -> None:
        self.trial, self.command, self.surroundings = trial, command, surroundings
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None
        self._signals: list[int] = []
        self._deaths = 0
        self._newest: str | None = None

    def poll(self) -> Outcome | None:
        """Start what is to be started; returns the outcome once there is one."""
        if self._process is None:
            return self._start()
        code = self._process.poll()
        if code is None:
            return None
        self._close()
        return self._judge(code if code >= 0 else 128 - code)

    def send(self, number: int) -> None:
        """Pass a signal on to the run, now or when it has been started; it is not started again after one."""
        self._signals.append(number)
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    @property
    def pid(self) -> int | None:
        """Of the process at hand."""
        return None if self._process is None else self._process.pid

    def _start(self) -> Outcome | None:
        folder = self.trial.folder
        if self._signals:
            return Outcome("interrupted", 128 + self._signals[0])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _lock(folder)
            if lock is None:  # a process whose parent has died is still writing its checkpoint
                return None
            with lock:
                if self.command.is_finished(folder):
                    return Outcome("finished", 0)
                if not self.trial.resumes:
                    _clear(folder)
                self._newest = commands.newest_checkpoint(folder)
                commands.note_start(folder, socket.gethostname())
                self._process = self._spawn(lock)
        except OSError as error:
            return Outcome("failed", CANNOT_WRITE, str(error))
        return None

    def _spawn(self, lock: IO[str]) -> subprocess.Popen[bytes]:
        trial, given = self.trial, self.surroundings
        reading, self._pipe = os.pipe()
        arguments = self.command.arguments(trial.folder, trial.arguments, given.threads)
        root = str(Path(nap_rl.__file__).absolute().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = {name: str(given.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if given.threads}
        environment = {**os.environ, **threads, **(given.environment or {}), "PYTHONPATH": os.pathsep.join(paths)}
        with open(os.devnull if given.show else trial.folder / commands.OUTPUT, "ab") as output:
            try:
                return subprocess.Popen(
                    [sys.executable, "-m", "nap_rl.sweep.child", str(reading), self.command.program, *arguments],
                    pass_fds=(reading, lock.fileno()),
                    start_new_session=True,  # Ctrl-C reaches it through us alone, and so once
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=None if given.show else output,
                    stderr=None if given.show else output,
                )
            finally:
                os.close(reading)

    def _judge(self, code: int) -> Outcome | None:
        """What the end of a process means; None: it is started again."""
        folder = self.trial.folder
        reason = commands.summary_of(folder).get("reason") or commands.last_words(folder)
        if self.command.is_finished(folder):
            return Outcome("finished", 0)
        if self._signals or code in STOPPED_CODES:
            return Outcome("interrupted", 128 + self._signals[0] if self._signals else code)
        if code == REFUSED:
            return Outcome("refused", code, commands.last_words(folder))
        if code == DIVERGED:
            return Outcome("diverged", code, reason)
        if code == CANNOT_WRITE:
            return Outcome("failed", code, reason)
        newest = commands.newest_checkpoint(folder)
        self._deaths = 1 if newest != self._newest else self._deaths + 1
        if self._deaths >= (DEATHS if code > 128 else FAILURES):
            words = commands.last_words(folder)
            died = f"it died {self._deaths} times in a row without a new checkpoint, with exit code {code}"
            return Outcome("failed", code, f"{died}: {words}" if words else died)
        return None

    def _close(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
        self._process = self._pipe = None


def is_held(folder: Path) -> bool:
    """Whether a process of a run is in `folder`."""
    try:
        lock = _lock(folder)
    except OSError:
        return False
    if lock is None:
        return True
    lock.close()
    return False


def _lock(folder: Path) -> IO[str] | None:
    """The lock of a run's folder, or None while another process has it."""
    file = open(folder / LOCK, "a", encoding="ascii")  # noqa: SIM115  (closing it is releasing it)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system without locks
        pass
    return file


def _clear(folder: Path) -> None:
    """Remove what a run left that cannot go on: its checkpoints hold no replay."""
    for path in folder.iterdir():
        if path.name in (commands.STARTS, commands.OUTPUT, LOCK):
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
