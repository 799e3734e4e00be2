"""A run at MLflow: in runs/mlflow.db unless MLFLOW_TRACKING_URI says otherwise."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from nap_rl.logging.identity import identity

LOCAL = Path("runs")
PARAMS_A_CALL, METRICS_A_CALL = 100, 1000  # MLflow's own limits
LONGEST_PARAM = 500


@final
class MlflowRun:
    """Writes into a database: `mlflow ui --backend-store-uri sqlite:///runs/mlflow.db` shows it.

    MLFLOW_EXPERIMENT_NAME (else the run's `name`) and the library's other variables are read. A resumed run goes on in
    the same run: what was logged before is not logged again.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # tables that are made are no news
        logging.getLogger("alembic").setLevel(logging.WARNING)
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        with _database(uri) as local:
            self._client = MlflowClient(uri or local)
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or str(config.get("name", "nap_rl"))
            experiment = self._client.get_experiment_by_name(name)
            place = None if uri else (LOCAL / "mlflow").resolve().as_uri()
            number = experiment.experiment_id if experiment else self._client.create_experiment(name, place)

        def new() -> str:
            run = self._client.create_run(number, run_name="/".join(folder.resolve().parts[-2:]))
            return str(run.info.run_id)

        self._id, self._known = identity(folder, "mlflow", new)
        self._last: dict[str, int] = {}  # the last step of an earlier process, by name
        if self._known:
            self._client.update_run(self._id, status="RUNNING")
            return
        params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in _leaves(config)]
        for begin in range(0, len(params), PARAMS_A_CALL):
            self._client.log_batch(self._id, params=params[begin : begin + PARAMS_A_CALL])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(key, value, now, step) for key, value in values.items() if step > self._last_step(key)]
        for begin in range(0, len(metrics), METRICS_A_CALL):
            self._client.log_batch(self._id, metrics=metrics[begin : begin + METRICS_A_CALL])

    def artifact(self, path: Path) -> None:
        self._client.log_artifact(self._id, str(path))

    def finish(self) -> None:
        self._client.set_terminated(self._id)

    def _last_step(self, key: str) -> int:
        if not self._known:
            return -1
        if key not in self._last:
            history = self._client.get_metric_history(self._id, key)
            self._last[key] = max((metric.step for metric in history), default=-1)
        return self._last[key]


def address() -> str:
    """The local database's."""
    return f"sqlite:///{(LOCAL / 'mlflow.db').resolve()}"


def place() -> str:
    """The command that shows all runs."""
    return f"mlflow ui --backend-store-uri {os.environ.get('MLFLOW_TRACKING_URI') or address()}"


@contextmanager
def _database(uri: str | None) -> Iterator[str]:
    """The address of the local database. One process at a time: the first one makes its tables."""
    local = address()
    if uri:
        yield local
        return
    LOCAL.mkdir(exist_ok=True)
    with open(LOCAL / ".mlflow.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield local


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
