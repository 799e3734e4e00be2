"""The runs of a sweep on Ray Tune: on this machine alone, or on a cluster that is there already.

Tune decides what runs where and starts lost runs again. What counts stands in the runs' folders, which all nodes must
see under one path: a new driver makes a new experiment of what is unfinished, and Tune's own tables are thrown away.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from nap_rl.sweep import attempts
from nap_rl.sweep.attempts import Outcome, Surroundings, TrialRun
from nap_rl.sweep.child import GRACE
from nap_rl.sweep.commands import Command
from nap_rl.sweep.halving import Halving, Judge, scores_of
from nap_rl.sweep.local import POLL_SECONDS, Signals, Watcher
from nap_rl.sweep.record import Record
from nap_rl.sweep.sharing import processes
from nap_rl.sweep.trials import Trial

STATE = ".tune"  # in the sweep's folder, while it runs
REPORT_SECONDS = 1.0
PREFIX = "nap_rl-ray-"
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Resources(NamedTuple):
    """What a run takes, and how many run at a time at most (None: as many as the cluster takes)."""

    cpus: int
    gpus: float
    parallel: int | None


def is_installed() -> bool:
    """Whether the extra is: `pip install -e '.[ray]'`."""
    return find_spec("ray") is not None and find_spec("pyarrow") is not None


@contextmanager
def cluster(address: str | None, cores: int, gpus: int) -> Iterator[Mapping[str, float]]:
    """Ray, and the resources that it has.

    Without an address it is started here: on the loopback interface, without dashboard and usage statistics, its files
    in a folder that goes with it. It ends with this process, however that dies.

    Raises:
        ValueError: there is no cluster at the address.
    """
    os.environ.update(ENVIRONMENT)
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # or it binds to the machine's outside address
        # Without one it writes one into the home folder. It keeps the first that a process has.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "include_dashboard": False}
    place: Path | None = None
    if address is None:
        _remove_old()
        place = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        ray.init(
            address="local",
            _node_ip_address="127.0.0.1",
            _temp_dir=str(place),
            num_cpus=cores,
            num_gpus=gpus,
            object_store_memory=100 << 20,
            **quiet,
        )
    else:
        try:
            ray.init(address=address, **{**quiet, "include_dashboard": None})
        except (ConnectionError, RuntimeError) as error:
            raise ValueError(f"ray.address={address}: no Ray answers there ({_first_line(error)})") from None
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # a lost process is no error here: its run is started again
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)


def run(
    record: Record,
    trials: Sequence[Trial],
    takes: Resources,
    watcher: Watcher,
    signals: Signals,
    judge: Judge | None = None,
) -> None:
    """Bring `trials` to their ends; the outcomes stand in `record`. To be called within `cluster`.

    A run that `judge` ends is "stopped": its checkpoints stay, and no driver goes on with it. A signal stops all runs
    with their checkpoints, and no other begins.
    """
    from ray import tune

    state = record.folder.absolute() / STATE
    shutil.rmtree(state, ignore_errors=True)
    together = processes(trials)
    notes = _notes(record, together, watcher, signals, judge)
    trainable = tune.with_resources(
        tune.with_parameters(
            _trainable(),
            together=[[_absolute(trial) for trial in each] for each in together],
            command=record.command,
            halving=None if judge is None else judge.halving,
        ),
        {"CPU": takes.cpus, "GPU": takes.gpus} if takes.gpus else {"CPU": takes.cpus},
    )
    tuner = tune.Tuner(
        trainable,
        param_space={
            "run": tune.grid_search(list(range(len(together)))),
            "threads": takes.cpus,
        },
        tune_config=tune.TuneConfig(max_concurrent_trials=takes.parallel, reuse_actors=judge is None),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(state),
            failure_config=tune.FailureConfig(max_failures=-1),  # runs know by themselves when to give up
            callbacks=[notes],
            stop=notes.stopper,
            verbose=0,
        ),
    )
    signals.install()
    tuner.fit()
    _wait_for(record, [trial for trial in trials if trial.folder in record.running])
    for trial in trials:
        if trial.folder in record.running:
            outcome = attempts.ending_of(trial, record.command) or Outcome("interrupted", _code(signals))
            record.ends(trial, outcome)
            watcher.ends(trial, outcome)
    shutil.rmtree(state, ignore_errors=True)
    record.write(now=True)


def _trainable() -> Any:
    """The class that Tune runs in an actor: a process that starts the run's process and looks after it."""
    from ray import tune

    class Run(tune.Trainable):  # type: ignore[misc]
        attempt: TrialRun | None = None

        def setup(
            self,
            config: dict[str, Any],
            together: Sequence[Sequence[Trial]],
            command: Command,
            halving: Halving | None,
        ) -> None:
            self.together, self.command, self.halving = together, command, halving
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.cleanup()
            self.number = new_config["run"]
            trials = self.together[self.number]
            self.folder = trials[0].folder
            surroundings = Surroundings(threads=new_config["threads"])
            self.attempt = TrialRun(trials, self.command, surroundings)
            return True

        def step(self) -> dict[str, Any]:
            assert self.attempt is not None
            until = time.monotonic() + REPORT_SECONDS
            while time.monotonic() < until:
                if (outcomes := self.attempt.poll()) is not None:
                    self.attempt = None
                    return {**self.seen(), "outcomes": [tuple(outcome) for outcome in outcomes], "done": True}
                time.sleep(POLL_SECONDS)
            return {**self.seen(), "outcomes": None}

        def seen(self) -> dict[str, Any]:
            """Which run it is, and its score at each rung that it has reached."""
            return {"run": self.number, "scores": [] if self.halving is None else scores_of(self.folder, self.halving)}

        def cleanup(self) -> None:
            """Stop the run with its checkpoint; should this process be killed meanwhile, the run ends by itself."""
            if self.attempt is None:
                return
            self.attempt.send(signal.SIGTERM)
            until = time.monotonic() + GRACE
            while self.attempt.poll() is None and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
            self.attempt = None

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing: a run's state is in its folder."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Nothing, as above."""

    return Run


def _notes(
    record: Record,
    together: Sequence[Sequence[Trial]],
    watcher: Watcher,
    signals: Signals,
    judge: Judge | None,
) -> Any:
    """What Tune tells, put into the record."""
    from ray import tune

    class Notes(tune.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.stopper = _stopper(together, signals, judge)

        def setup(self, **info: Any) -> None:
            signals.install()  # Tune has taken SIGUSR1

        def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
            watcher.looks()

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            for mine in self._runs_of(trial):
                if mine.folder not in record.running:
                    record.begins(mine)
                    watcher.begins(mine)

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            if result.get("outcomes") is None:
                return
            for mine, words in zip(self._runs_of(trial), result["outcomes"], strict=True):
                outcome = Outcome(*words)
                record.ends(mine, outcome)
                watcher.ends(mine, outcome)
                if outcome.code in attempts.STOPPED_CODES:
                    self.stopper.stopping = True  # somebody else stopped it

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            for mine in self._runs_of(trial):
                outcome = attempts.ending_of(mine, record.command)
                if outcome is not None and mine.folder in record.running:
                    record.ends(mine, outcome)
                    watcher.ends(mine, outcome)

        @staticmethod
        def _runs_of(trial: Any) -> Sequence[Trial]:
            return together[trial.config["run"]]

    return Notes()


def _stopper(together: Sequence[Sequence[Trial]], signals: Signals, judge: Judge | None) -> Any:
    """What Tune asks of each result and between results: whether the run ends, whether all do."""
    from ray import tune

    class Stop(tune.Stopper):  # type: ignore[misc]
        stopping = False

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            if judge is None:
                return False
            (run,) = together[result["run"]]
            return judge.ends(run.folder, result["scores"], finished=result["outcomes"] is not None)

        def stop_all(self) -> bool:
            return self.stopping or bool(signals.received)

    return Stop()


def _wait_for(record: Record, trials: Sequence[Trial]) -> None:
    """Until the processes of stopped runs have written their checkpoints and are gone."""
    until = time.monotonic() + GRACE + 5
    while any(attempts.is_held(trial.folder) for trial in trials) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)


def _code(signals: Signals) -> int:
    return 128 + (signals.received[0] if signals.received else signal.SIGTERM)


def _absolute(trial: Trial) -> Trial:
    """With absolute folders: Tune's processes have working folders of their own."""
    together = None if trial.together is None else trial.together.absolute()
    return replace(trial, folder=trial.folder.absolute(), together=together)


def _remove_old() -> None:
    """Folders of drivers that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        number = path.name.removeprefix(PREFIX).partition("-")[0]
        if number.isdecimal():
            try:
                os.kill(int(number), 0)
            except ProcessLookupError:
                shutil.rmtree(path, ignore_errors=True)
            except PermissionError:
                pass


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
