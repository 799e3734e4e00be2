"""A process of a sweep, of one run or of several, started again after each death until all have come to their ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import nap_rl
from nap_rl.sweep import commands, halving
from nap_rl.sweep.commands import Command
from nap_rl.sweep.sharing import without_seed
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


def ending_of(trial: Trial, command: Command) -> Outcome | None:
    """How a run ended for good, as its folder says; None: it may go on."""
    if command.is_finished(trial.folder):
        return Outcome("finished", 0)
    if (frames := halving.ended_at(trial.folder)) is not None:
        return Outcome("stopped", 0, f"asha ended it at {frames:,} frames")
    summary = commands.summary_of(trial.folder) if command.has_status else {}
    if summary.get("status") == "diverged":  # and would again
        return Outcome("diverged", DIVERGED, summary.get("reason"))
    return None


class TrialRun:
    """The runs of one process, most often one, that are being brought to their ends; nothing here waits."""

    def __init__(self, trials: Sequence[Trial], command: Command, surroundings: Surroundings) -> None:
        self.trials, self.command, self.surroundings = trials, command, surroundings
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None
        self._signals: list[int] = []
        self._deaths = 0
        self._newest: list[str | None] = []

    def poll(self) -> list[Outcome] | None:
        """Start what is to be started; returns the outcomes of all runs once there are all."""
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

    def _start(self) -> list[Outcome] | None:
        if self._signals:
            return self._outcomes(Outcome("interrupted", 128 + self._signals[0]))
        try:
            with ExitStack() as locks:
                held = [_lock(trial.folder, make=True) for trial in self.trials]
                for lock in held:
                    if lock is not None:
                        locks.enter_context(lock)
                if None in held:  # a process whose parent has died is still writing its checkpoint
                    return None
                left = [trial for trial in self.trials if ending_of(trial, self.command) is None]
                if not left:
                    return self._outcomes(None)
                for trial in left:
                    if not trial.resumes:
                        _clear(trial.folder)
                    commands.note_start(trial.folder, socket.gethostname())
                self._newest = self._checkpoints()
                self._process = self._spawn(left, [lock.fileno() for lock in held if lock is not None])
        except OSError as error:
            return self._outcomes(Outcome("failed", CANNOT_WRITE, str(error)))
        return None

    def _spawn(self, left: Sequence[Trial], locks: Sequence[int]) -> subprocess.Popen[bytes]:
        command, given, first = self.command, self.surroundings, left[0]
        self._place = first.folder
        arguments = command.arguments(first.folder, first.arguments, given.threads)
        if len(left) > 1:
            assert first.together is not None
            self._place = first.together
            seeds = [trial.seed for trial in left]
            arguments = command.arguments_together(self._place, without_seed(first.arguments), seeds, given.threads)
        reading, self._pipe = os.pipe()
        root = str(Path(nap_rl.__file__).absolute().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = {name: str(given.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if given.threads}
        environment = {**os.environ, **threads, **(given.environment or {}), "PYTHONPATH": os.pathsep.join(paths)}
        with open(os.devnull if given.show else self._place / commands.OUTPUT, "ab") as output:
            try:
                return subprocess.Popen(
                    [sys.executable, "-m", "nap_rl.sweep.child", str(reading), command.program, *arguments],
                    pass_fds=(reading, *locks),
                    start_new_session=True,  # Ctrl-C reaches it through us alone, and so once
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=None if given.show else output,
                    stderr=None if given.show else output,
                )
            finally:
                os.close(reading)

    def _judge(self, code: int) -> list[Outcome] | None:
        """What the end of a process means; None: it is started again."""
        if all(ending_of(trial, self.command) for trial in self.trials):
            return self._outcomes(None)
        words = commands.last_words(self._place)
        if self._signals or code in STOPPED_CODES:
            return self._outcomes(Outcome("interrupted", 128 + self._signals[0] if self._signals else code))
        if code == REFUSED:
            return self._outcomes(Outcome("refused", code, words))
        if code in (DIVERGED, CANNOT_WRITE):
            return self._outcomes(Outcome("diverged" if code == DIVERGED else "failed", code, words), own_reason=True)
        newest = self._checkpoints()
        self._deaths = 1 if newest != self._newest else self._deaths + 1
        if self._deaths >= (DEATHS if code > 128 else FAILURES):
            died = f"it died {self._deaths} times in a row without a new checkpoint, with exit code {code}"
            return self._outcomes(Outcome("failed", code, f"{died}: {words}" if words else died))
        return None

    def _outcomes(self, others: Outcome | None, *, own_reason: bool = False) -> list[Outcome]:
        """Of each run, in order: what its folder says, else `others`."""
        found = []
        for trial in self.trials:
            outcome = ending_of(trial, self.command) or others
            assert outcome is not None
            if own_reason and outcome is others:
                outcome = others._replace(reason=commands.summary_of(trial.folder).get("reason") or others.reason)
            found.append(outcome)
        return found

    def _checkpoints(self) -> list[str | None]:
        return [commands.newest_checkpoint(trial.folder) for trial in self.trials]

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


def _lock(folder: Path, *, make: bool = False) -> IO[str] | None:
    """The lock of a run's folder, or None while another process has it."""
    if make:
        folder.mkdir(parents=True, exist_ok=True)
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
        if path.name in (commands.STARTS, commands.OUTPUT, halving.NAME, LOCK):
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
