"""Trackers get what the CSV files get, go on where a run goes on, and can neither stop nor slow it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nap_rl.logging import RunLog, mlflow_run, wandb_run
from nap_rl.logging.events import EventFile
from nap_rl.logging.trackers import Background, Tracker, opened, places

Calls = list[tuple[Any, ...]]


class Recorder:
    """Keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: Calls = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.calls.append(("log", step, dict(values)))

    def artifact(self, path: Path) -> None:
        self.calls.append(("artifact", path.name, path.read_text()))

    def finish(self) -> None:
        self.calls.append(("finish",))


class Failing(Recorder):
    """Raises at its second row."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        super().log(step, values)
        if len(self.calls) == 2:
            raise self.error


def background(open: Callable[[], Tracker], **options: Any) -> tuple[Background, list[str]]:
    warnings: list[str] = []
    return Background("a tracker", open, warnings.append, **options), warnings


def test_a_tracker_gets_the_rows_of_the_csv_file_and_at_the_end_the_files(tmp_path: Path) -> None:
    recorder = Recorder()
    with RunLog(tmp_path, tensorboard=False) as log:
        log.add_tracker(background(lambda: recorder)[0])
        log.metrics(1, 4, 16, {"train/loss": 0.5, "rollout/ep_rew_mean": None})
        log.evaluation(frames=32, game="pong", cycle=0, episodes=[(7, 1.5, 40)], frame_skip=4, scalars={})
        log.summary({"status": "finished"})
    rows, files = recorder.calls[:2], [call[1] for call in recorder.calls[2:-1]]
    assert rows[0] == ("log", 16, {"train/loss": 0.5})
    assert rows[1][1] == 32 and rows[1][2]["eval/pong/mean_return"] == 1.5
    assert files == ["summary.json", "metrics.csv", "episodes.csv", "evaluations.csv"]
    assert recorder.calls[-1] == ("finish",)


def test_tensorboards_events_are_a_tracker_too(tmp_path: Path) -> None:
    tracker: Tracker = EventFile(tmp_path)
    tracker.log(1, {"a": 1.0})
    tracker.finish()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [OSError("no space"), RuntimeError("login needed"), SystemExit(1)])
def test_a_tracker_that_fails_is_one_warning_and_the_run_goes_on(tmp_path: Path, error: BaseException) -> None:
    failing = Failing(error)
    tracker, warnings = background(lambda: failing)
    with RunLog(tmp_path, tensorboard=False) as log:
        log.add_tracker(tracker)
        for frames in range(100):
            log.metrics(frames, frames, frames, {"a": 1.0})
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 101
    assert len(failing.calls) == 2
    assert len(warnings) == 1 and "a tracker has stopped, and the run goes on without it" in warnings[0]
    assert (str(error) or "SystemExit") in warnings[0]


def test_a_tracker_that_cannot_be_opened_is_one_warning() -> None:
    def refuse() -> Tracker:
        raise ImportError("no such library")

    tracker, warnings = background(refuse)
    tracker.finish()
    tracker.log(1, {"a": 1.0})
    tracker.finish()
    assert len(warnings) == 1 and "no such library" in warnings[0]


def test_the_warning_comes_in_the_thread_of_the_run() -> None:
    told: list[threading.Thread] = []
    tracker = Background("x", lambda: Failing(OSError("gone")), lambda _: told.append(threading.current_thread()))
    for step in range(2):
        tracker.log(step, {})
    tracker.finish()
    assert told == [threading.current_thread()]


def test_a_tracker_that_hangs_keeps_no_call_waiting_and_is_given_up_at_the_end() -> None:
    release = threading.Event()

    class Hanging(Recorder):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            release.wait()

    hanging = Hanging()
    tracker, warnings = background(lambda: hanging, most_waiting=50, patience=0.05)
    for step in range(200):  # of which each would wait for ever
        tracker.log(step, {"a": 1.0})
    tracker.finish()
    release.set()
    assert len(warnings) == 1 and "50 calls behind" in warnings[0]


def test_values_are_those_of_the_moment_of_the_call() -> None:
    recorder, values = Recorder(), {"a": 1.0}
    tracker, _ = background(lambda: recorder)
    tracker.log(1, values)
    values["a"] = 2.0
    tracker.finish()
    assert recorder.calls[0] == ("log", 1, {"a": 1.0})


# -- the real libraries


CONFIG = {"name": "mine", "seed": 3, "agent": {"nap": True, "torso": "nature"}}
TAG = "nap/param_norm/torso.0"


def trained(name: str, folder: Path, steps: range) -> list[str]:
    """A part of a run: rows at `steps`; the warnings."""
    warnings: list[str] = []
    (tracker,) = opened([name], folder, CONFIG, warnings.append)
    for step in steps:
        tracker.log(step, {TAG: float(step), "train/loss": 0.5})
    (folder / "summary.json").write_text("{}")
    tracker.artifact(folder / "summary.json")
    tracker._patience = 120.0  # of a machine that is busy with other tests
    tracker.finish()
    return warnings


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder, in a folder of its own to work in."""
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.mark.slow
def test_mlflow_has_one_run_with_each_row_once_after_a_resume(away: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow.tracking import MlflowClient

    assert trained("mlflow", away, range(0, 6)) == []
    assert trained("mlflow", away, range(4, 9)) == []  # a killed run's last rows are played again
    client = MlflowClient(mlflow_run.address())
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, TAG)] == [(s, s) for s in range(9)]
    assert run.data.params["agent.torso"] == "nature" and run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["summary.json"]
    assert mlflow_run.address() in places(["mlflow"], away)["mlflow"]


@pytest.mark.slow
def test_wandb_writes_offline_into_the_runs_folder_and_a_resumed_run_keeps_its_id(away: Path) -> None:
    pytest.importorskip("wandb")
    assert trained("wandb", away, range(0, 6)) == []
    time.sleep(1.1)  # its folders are named by the second
    assert trained("wandb", away, range(4, 9)) == []
    parts = sorted((away / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    assert {part.name.split("-")[-1] for part in parts} == {(away / ".trackers" / "wandb").read_text().strip()}
    held = b"".join(next(part.glob("*.wandb")).read_bytes() for part in parts)
    assert TAG.encode() in held and b"agent" in held
    assert "wandb sync" in places(["wandb"], away)["wandb"]
    assert wandb_run.PROJECT.encode() in held
