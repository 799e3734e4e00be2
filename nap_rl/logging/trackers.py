"""Where a run's numbers go besides its CSV files: TensorBoard, Weights & Biases, MLflow.

The CSV files are the truth. A tracker has a copy, under the same names, with frames as steps.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, final

from nap_rl.logging import mlflow_run, wandb_run

MOST_WAITING = 10_000  # calls; a row of 100 numbers takes some 10 kB
PATIENCE_SECONDS = 20.0


class Tracker(Protocol):
    """A place for a run's numbers."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars at `step`, in frames."""

    def artifact(self, path: Path) -> None:
        """Keep a copy of a file of the run's folder, as it is now."""

    def finish(self) -> None:
        """Nothing comes after this."""


@final
class Background:
    """A tracker in a thread of its own: a call returns at once, and no failure leaves it.

    After a failure the run goes on without the tracker, and `warn` is told once, in the thread of the caller. A tracker
    that falls behind by `most_waiting` calls counts as failed.

    Args:
        name: for the warning.
        open: makes the tracker; called in the thread, because it may import, connect and wait.
        patience: seconds that `finish` waits for what is still to be written.
    """

    def __init__(
        self,
        name: str,
        open: Callable[[], Tracker],
        warn: Callable[[str], None],
        *,
        most_waiting: int = MOST_WAITING,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._name, self._open, self._warn = name, open, warn
        self._most_waiting, self._patience = most_waiting, patience
        self._calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._failure: str | None = None
        self._told = self._finished = False
        self._thread = threading.Thread(target=self._work, name=f"{name} tracker", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        kept = dict(values)
        self._call(lambda tracker: tracker.log(step, kept))

    def artifact(self, path: Path) -> None:
        self._call(lambda tracker: tracker.artifact(path))

    def finish(self) -> None:
        """Waits for `patience` seconds at most. A second call does nothing."""
        if not self._finished:
            self._finished = True
            self._calls.put(None)
            self._thread.join(self._patience)
            if self._thread.is_alive() and self._failure is None:
                self._failure = f"not done after {self._patience:g} s"
            self._tell()

    def _call(self, call: Callable[[Tracker], None]) -> None:
        if self._failure is None and self._calls.qsize() >= self._most_waiting:
            self._failure = f"{self._most_waiting:,} calls behind"
        self._tell()
        if self._failure is None and not self._finished:
            self._calls.put(call)

    def _work(self) -> None:
        try:
            tracker = self._open()
            while self._failure is None and (call := self._calls.get()) is not None:
                call(tracker)
            tracker.finish()
        except BaseException as error:  # a library may raise anything, SystemExit too
            self._failure = " ".join(str(error).split())[:300] or type(error).__name__

    def _tell(self) -> None:
        if self._failure is not None and not self._told:
            self._told = True
            self._warn(f"warning: {self._name} has stopped, and the run goes on without it: {self._failure}")


def opened(
    names: Sequence[str], folder: Path, config: Mapping[str, Any], warn: Callable[[str], None]
) -> list[Background]:
    """A tracker for each of `names` (wandb, mlflow) of the run in `folder`, which it goes on with if it is there."""
    kinds: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
        "wandb": wandb_run.WandbRun,
        "mlflow": mlflow_run.MlflowRun,
    }

    def background(name: str) -> Background:
        return Background(name, lambda: kinds[name](folder, config), warn)

    return [background(name) for name in names]


def places(names: Sequence[str], folder: Path) -> dict[str, str]:
    """Where to look at a run, by tracker."""
    found = {"wandb": wandb_run.place(folder), "mlflow": mlflow_run.place()}
    return {name: found[name] for name in names}
