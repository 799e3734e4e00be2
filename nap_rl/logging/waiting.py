"""A word every few seconds while something takes its time, even a call that lets no other thread run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

EVERY = 5.0  # seconds between two lines

# Ends with its standard input: when the wait is over, or with this process.
SCRIPT = """
import select, sys, time
what, every, about = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
began = time.monotonic()
if about >= every:
    print(f"{what}, about {about:.0f} s", file=sys.stderr, flush=True)
while not select.select([sys.stdin], [], [], every)[0]:
    spent = time.monotonic() - began
    left = f", of about {about:.0f} s" if spent < about else ""
    print(f"{what}: {spent:.0f} s{left}", file=sys.stderr, flush=True)
"""


class Waiting:
    """Within it a line comes on standard error every few seconds: "seeding 256 emulators: 20 s, of about 64 s".

    A long wait begins with a line, a short one says nothing. One that goes beyond its estimate goes on without it.

    The lines are printed by a child process: C++ code may hold Python's lock for a minute. Where none can be started
    there are no lines.

    Args:
        what: is being done.
        about: seconds that it takes, an estimate.
        every: seconds between two lines.
    """

    def __init__(self, what: str, about: float, *, every: float = EVERY) -> None:
        self._command = [sys.executable, "-S", "-c", SCRIPT, what, str(every), str(about)]
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Waiting:
        with suppress(OSError):
            # A session of its own: Ctrl-C is this process's affair.
            self._child = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None and self._child.stdin is not None:
            with suppress(OSError):
                self._child.stdin.close()
            self._child.wait()


class Counting:
    """Called with a count as often as one likes, prints it every few seconds: "pong: 12 of 100 episodes, 20 s"."""

    def __init__(
        self, what: str, of: str, *, every: float = EVERY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what, self._of, self._every, self._clock = what, of, every, clock
        self._began = self._said = clock()

    def __call__(self, count: int) -> None:
        """So much is done."""
        now = self._clock()
        if now - self._said < self._every:
            return
        self._said = now
        with suppress(OSError):
            print(f"{self._what}: {count:,} of {self._of}, {now - self._began:.0f} s", file=sys.stderr, flush=True)
