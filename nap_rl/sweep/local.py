"""The runs of a sweep on this machine, several at a time, each a process of its own; no Ray."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Protocol

from nap_rl.sweep.attempts import STOPPED_CODES, STOPPING, Outcome, Surroundings, TrialRun
from nap_rl.sweep.halving import Judge, scores_of
from nap_rl.sweep.record import Record
from nap_rl.sweep.sharing import processes
from nap_rl.sweep.trials import Trial

POLL_SECONDS = 0.05
JUDGE_SECONDS = 1.0


class Watcher(Protocol):
    """Who is told how a sweep goes."""

    def begins(self, trial: Trial) -> None: ...
    def ends(self, trial: Trial, outcome: Outcome) -> None: ...
    def looks(self) -> None:
        """Called many times a second."""


class Signals:
    """Within it SIGINT, SIGTERM, SIGUSR1 and SIGHUP are only noted, one by one, in `received`."""

    def __init__(self) -> None:
        self.received: list[int] = []

    def __enter__(self) -> Signals:
        self._before = {number: signal.getsignal(number) for number in STOPPING}
        self.install()
        return self

    def install(self) -> None:
        """Take the signals, again if a library has taken them meanwhile."""
        for number in STOPPING:
            signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)


def passed_on(number: int) -> int:
    """What a run gets for a signal of ours: a terminal that is closed asks for an orderly end too."""
    return signal.SIGTERM if number == signal.SIGHUP else number


def run(
    record: Record,
    trials: Sequence[Trial],
    places: Sequence[Surroundings],
    watcher: Watcher,
    signals: Signals,
    judge: Judge | None = None,
) -> None:
    """Bring `trials` to their ends, as many processes at a time as there are `places`; the outcomes stand in `record`.

    A signal goes on to all runs at hand, and no other begins. So does a run that somebody else stopped. What `judge`
    ends stops with a checkpoint.
    """
    waiting, free = deque(processes(trials)), deque(places)
    running: list[tuple[TrialRun, Surroundings]] = []
    passed = 0
    stopping = False
    judged = time.monotonic()
    while running or (waiting and not stopping):
        while waiting and free and not stopping and not signals.received:
            together, place = waiting.popleft(), free.popleft()
            running.append((TrialRun(together, record.command, place), place))
            for trial in together:
                record.begins(trial)
                watcher.begins(trial)
        for number in signals.received[passed:]:
            _each(running, lambda attempt, number=number: attempt.send(passed_on(number)))  # type: ignore[misc]
            passed, stopping = passed + 1, True
        if judge is not None and time.monotonic() - judged > JUDGE_SECONDS:
            judged = time.monotonic()
            _each(running, lambda attempt: _judge(attempt, judge))
        for attempt, place in list(running):
            if (outcomes := attempt.poll()) is None:
                continue
            running.remove((attempt, place))
            free.append(place)
            for trial, outcome in zip(attempt.trials, outcomes, strict=True):
                if judge is not None and outcome.status == "finished":
                    judge.ends(trial.folder, scores_of(trial.folder, judge.halving), finished=True)
                record.ends(trial, outcome)
                watcher.ends(trial, outcome)
            if any(outcome.code in STOPPED_CODES for outcome in outcomes) and not stopping:
                stopping = True
                _each(running, lambda other: other.send(signal.SIGTERM))
        watcher.looks()
        if running:
            time.sleep(POLL_SECONDS)
    record.write(now=True)


def _each(running: Sequence[tuple[TrialRun, Surroundings]], do: Callable[[TrialRun], None]) -> None:
    for attempt, _ in running:
        do(attempt)


def _judge(attempt: TrialRun, judge: Judge) -> None:
    (run,) = attempt.trials
    if judge.ends(run.folder, scores_of(run.folder, judge.halving)):
        attempt.send(signal.SIGTERM)


def exit_code(record: Record, signals: Signals) -> int:
    """128 + signal, else the highest code of a run."""
    if signals.received:
        return 128 + signals.received[0]
    codes = [record.outcomes[trial.folder].code for trial in record.trials if trial.folder in record.outcomes]
    stopped = [code for code in codes if code in STOPPED_CODES]
    return stopped[0] if stopped else max(codes, default=0)
