"""Stationary training: one data set, one network, one schedule. Images and language share this loop.

    for each update:
        batch     = next(task.batches)                    this process's share
        loss      = task.loss(module, batch)              mean over the share; autocast if precision=bf16
        gradients = mean over processes                   DistributedDataParallel, under torchrun
        weights  <- optimizer step at schedule(update)    then the projection, with variant=nap
        rows of metrics.csv and evaluations.csv, checkpoints

A study writes one function, `build(config, ranks, device) -> Task`, and calls `run`. A run that was killed goes on
from its newest checkpoint and writes the same files, to the bit on a CPU in fp32:

    folder/metrics.csv        update, mean loss since the last row, learning rate, norms
    folder/evaluations.csv    update, what task.evaluate returns
    folder/checkpoints/       weights, moments, norms, each process's place in the data and its random state
    folder/summary.json       last, once the run is finished
"""

from __future__ import annotations

import math
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nap_rl import __version__, checkpoint, cli, threads
from nap_rl.checkpoint import nested
from nap_rl.logging.console import say
from nap_rl.logging.files import GrowingFile, row
from nap_rl.nap import LayerMonitor
from nap_rl.process import StopSignals, sole_owner
from nap_rl.studies import ranks as processes
from nap_rl.studies.arms import build_arm, build_schedule, load_moments, moments_of
from nap_rl.studies.config import SUMMARY
from nap_rl.studies.ranks import Ranks
from nap_rl.studies.stationary_config import EVALUATIONS, METRICS, TrainingConfig
from nap_rl.studies.stream import write_json

BAD_DATA, DIVERGED, CANNOT_WRITE = 2, 3, 4
Batch = tuple[Tensor, ...]  # on the CPU


class DataError(RuntimeError):
    """A part of the data cannot be read; one sentence that names it.

    Args:
        of_test: whether an evaluation met it: the update is half logged, so the run goes on from an earlier one.
    """

    def __init__(self, sentence: str, of_test: bool = False) -> None:
        super().__init__(sentence)
        self.of_test = of_test


class Batches(Protocol):
    """Endless batches. What comes next is decided by the state alone, however many workers prepare it."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch:
        """Raises DataError."""

    def state_dict(self) -> dict[str, Any]:
        """The place behind the last batch that was handed out: tensors, and values that JSON holds."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Task:
    """What is learned.

    Attributes:
        model: as initialised, on the CPU, without norms of ours.
        example: input for `normalize`, on the CPU: a few samples, as a tensor or a tuple of arguments.
        batches: of this process.
        loss: (module, batch on the device) -> mean loss over the batch, 0-dim. The module may be wrapped.
        evaluate: module in evaluation mode, without gradients -> named scores, equal in all processes.
        updates: of the whole run.
        eval_every: updates between two evaluations; the last update has one in any case.
        samples: of an update, over all processes, for the displayed rate.
    """

    model: nn.Module
    example: Tensor | tuple[Any, ...]
    batches: Batches
    loss: Callable[[nn.Module, Batch], Tensor]
    evaluate: Callable[[nn.Module], Mapping[str, float]]
    updates: int
    eval_every: int
    samples: int


Build = Callable[[Ranks, torch.device], Task]


def run(config: TrainingConfig, folder: Path, build: Build) -> int:
    """Train in `folder`, from its newest checkpoint if there is one; returns the exit code.

    Codes: 0 finished; 2 a part of the data cannot be read; 3 diverged; 4 the folder cannot be written; 128 + signal
    after SIGINT, SIGTERM or SIGUSR1. What cannot begin ends the process with one sentence and code 2: another process
    has the folder, its checkpoint is of another configuration, there is no such device.
    """
    torch.set_num_threads(threads.count(config.threads, torch.get_num_threads()))
    torch.set_flush_denormal(True)
    try:
        with ExitStack() as stack:
            with cli.refusing_bad_input():
                device = processes.device_of(config.device)
                ranks = stack.enter_context(processes.joined(device))
                folder.mkdir(parents=True, exist_ok=True)
                if ranks.writes:
                    stack.enter_context(sole_owner(folder))
                torch.manual_seed(config.seed)
                try:
                    task = build(ranks, device)
                except DataError as error:
                    raise ValueError(str(error)) from None
                training = Training(config, folder, task, ranks, device)
                training.resume()
            signals = stack.enter_context(StopSignals())
            return training.run(lambda: signals.received)
    finally:
        torch.set_flush_denormal(False)  # the whole process would go on computing that way


class Training:
    """One run: everything that changes, and the loop that changes it."""

    def __init__(self, config: TrainingConfig, folder: Path, task: Task, ranks: Ranks, device: torch.device) -> None:
        self.config, self.folder, self.task, self.ranks, self.device = config, folder, task, ranks, device
        self.schedule = build_schedule(config, task.updates)
        self.model, self.optimizer, self.projector = build_arm(config, task.model, task.example, device)
        self.monitor = LayerMonitor(self.model, self.optimizer)
        self.module = self.model
        if ranks.processes > 1:
            self.module = DistributedDataParallel(self.model, device_ids=[device] if device.type == "cuda" else None)
        torch.manual_seed((config.seed * 1_000_003 + 1 + ranks.rank) % 2**63)  # for dropout
        self.updates = 0
        self.loss_sum, self.loss_count = torch.zeros((), dtype=torch.float64, device=device), 0  # since the last row
        self.metrics, self.evaluations = (GrowingFile(folder / name) for name in (METRICS, EVALUATIONS))
        self.scores: dict[str, float] = {}
        self.seconds = 0.0  # of earlier processes
        self.saved: int | None = None  # update of the newest checkpoint
        self.started = time.perf_counter()

    def run(self, received: Callable[[], int | None]) -> int:
        """Go on to the end, or until `received` returns a signal's number; returns the exit code."""
        try:
            while self.updates < self.task.updates:
                self.update(next(self.task.batches))
                if self._is_due(self.config.log_every) or self._is_due(self.task.eval_every):
                    self.log()
                if self.updates % self.config.save_every == 0:
                    self.save()
                number = self._agree(received())
                if number is not None and self.updates < self.task.updates:
                    self.save()
                    self._say(f"stopped by {signal.Signals(number).name} at update {self.updates:,}, with a checkpoint")
                    return 128 + number
            self.save()
            if self.ranks.writes:
                write_json(self.folder / SUMMARY, self.summary())
        except DataError as error:
            return self._stopped_by_data(error)
        except FloatingPointError as error:
            self._say(f"diverged: {error}; the last checkpoint stays")
            return DIVERGED
        except OSError as error:
            say(f"the run's folder cannot be written: {error}; its last checkpoint is of update {self.saved or 0:,}")
            return CANNOT_WRITE
        return 0

    def update(self, batch: Batch) -> None:
        """One update of the weights."""
        if self._is_due(self.config.log_every, 1) or self._is_due(self.task.eval_every, 1):
            self.monitor.snapshot()
        batch = tuple(each.to(self.device, non_blocking=True) for each in batch)
        rate = self.schedule(self.updates / self.task.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.module.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            loss = self.task.loss(self.module, batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()  # the projector's hook projects
        self.updates += 1
        self.loss_sum += loss.detach()
        self.loss_count += 1

    def log(self) -> None:
        """Write a row of metrics.csv, and one of evaluations.csv if it is due.

        Raises:
            FloatingPointError: the loss is not finite.
            DataError: the test data cannot be read.
        """
        self._check_loss()
        loss = float(processes.total(self.loss_sum / self.loss_count)) / self.ranks.processes
        self.loss_sum.zero_()
        self.loss_count = 0
        rate = float(self.optimizer.param_groups[0]["lr"])
        self._append(self.metrics, {"train/loss": loss, "train/learning_rate": rate, **self.norms()})
        if self._is_due(self.task.eval_every):
            self.scores = self.evaluate()
            self._append(self.evaluations, self.scores)
            scores = ", ".join(f"{name} {value:.4f}" for name, value in self.scores.items())
            speed = self.updates * self.task.samples / self.total_seconds
            of = f"{self.updates:,} of {self.task.updates:,}"
            self._say(f"update {of}: loss {loss:.4f}, {scores}, {speed:,.0f} samples/s")

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The task's scores of the weights as they are."""
        processes.share_buffers(self.model)
        self.model.eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return {name: float(value) for name, value in self.task.evaluate(self.model).items()}

    def norms(self) -> dict[str, float]:
        """Of the last update, over all layers: largest drift; norm of all; means of effective rate and rotation."""
        layers = list(self.monitor.measure().values())

        def mean(name: str) -> float:
            return sum(layer[name] for layer in layers) / len(layers)

        drift = max(abs(layer["relative_drift"]) for layer in layers)
        if self.projector is not None and self.projector.groups:
            drift = float(self.projector.max_relative_drift())
        return {
            "nap/norm_drift": drift,
            "nap/param_norm": math.hypot(*(layer["param_norm"] for layer in layers)),
            "nap/effective_lr": mean("effective_lr"),
            "nap/rotation": mean("rotation"),
        }

    @property
    def total_seconds(self) -> float:
        return self.seconds + time.perf_counter() - self.started

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """All that decides later updates. Every process must call it: each has a place in the data of its own."""
        mine = {"batches": self.task.batches.state_dict(), "random": {"cpu": torch.get_rng_state()}}
        if self.device.type == "cuda":
            mine["random"]["cuda"] = torch.cuda.get_rng_state(self.device)
        state: dict[str, Any] = {
            "network": dict(self.model.state_dict()),
            "optimizer": moments_of(self.optimizer),
            "monitor": self.monitor.state_dict(),
            "log": {"loss_sum": self.loss_sum, "loss_count": self.loss_count},
            "processes": {str(rank): each for rank, each in enumerate(processes.gathered(mine))},
        }
        if self.projector is not None:
            state["projector"] = self.projector.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["network"])
        load_moments(self.optimizer, state.get("optimizer", {}))
        self.monitor.load_state_dict(state["monitor"])
        if self.projector is not None:
            self.projector.load_state_dict({"norms": {}, **state["projector"]})
        self.loss_sum.copy_(state["log"]["loss_sum"])
        self.loss_count = state["log"]["loss_count"]
        mine = state["processes"][str(self.ranks.rank)]
        self.task.batches.load_state_dict(mine["batches"])
        torch.set_rng_state(mine["random"]["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(mine["random"]["cuda"], self.device)

    def save(self) -> None:
        """Write a checkpoint of this update, unless there is one.

        Raises:
            FloatingPointError: a loss since the last row is not finite.
            OSError: the disk does not take it. Earlier ones stay.
        """
        if self.saved == self.updates:
            return
        self._check_loss()
        tensors, rest = nested.flatten(self.state_dict())
        if self.ranks.writes:
            for file in (self.metrics, self.evaluations):
                file.sync()
            meta = {
                "config": identity(self.config),
                "processes": self.ranks.processes,
                "updates": self.updates,
                "scores": self.scores,
                "seconds": self.total_seconds,
                "files": [file.state_dict() for file in (self.metrics, self.evaluations)],
                "state": rest,
            }
            checkpoint.save(self.folder / "checkpoints", f"update-{self.updates:012d}", tensors=tensors, meta=meta)
        self.saved = self.updates

    def resume(self) -> None:
        """Take over the newest sound checkpoint, if there is one. Raises ValueError if it is of other settings."""
        newest = checkpoint.latest(self.folder / "checkpoints")
        if newest is None:
            return
        found = checkpoint.load(newest)
        check_same(self.folder, self.config, self.ranks.processes, found.meta)
        self.load_state_dict(nested.unflatten(found.tensors, found.meta["state"]))
        self.updates = self.saved = found.meta["updates"]
        self.scores, self.seconds = found.meta["scores"], found.meta["seconds"]
        names = (METRICS, EVALUATIONS)
        if self.ranks.writes:
            files = zip(names, found.meta["files"], strict=True)
            self.metrics, self.evaluations = (GrowingFile(self.folder / name, state) for name, state in files)
        self._say(f"goes on from {newest} at update {self.updates:,}")

    def summary(self) -> dict[str, Any]:
        """What summary.json holds."""
        self.monitor.snapshot()  # a run may have been killed between its last checkpoint and here
        return {
            "config": identity(self.config),
            "status": "finished",
            "updates": self.updates,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "scores": self.scores,
            "norm_drift": self.norms()["nap/norm_drift"],
            "weights_sha256": checkpoint.sha256_of(self.model.state_dict()),
            "seconds": round(self.total_seconds, 2),
            "processes": self.ranks.processes,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "versions": {"nap_rl": __version__, "torch": torch.__version__, "python": platform.python_version()},
        }

    # Small parts.

    def _is_due(self, every: int, ahead: int = 0) -> bool:
        """Whether something is due behind this update, or so many ahead; at the last one everything is."""
        update = self.updates + ahead
        return update % every == 0 or update == self.task.updates

    def _check_loss(self) -> None:
        if not math.isfinite(float(processes.total(self.loss_sum.clone()))):
            raise FloatingPointError(
                f"a loss within the last {self.loss_count} updates, up to {self.updates:,}, is not finite"
            )

    def _agree(self, number: int | None) -> int | None:
        """The signal that any process has got. Several ask each other only where they wait for each other anyway."""
        if self.ranks.processes == 1:
            return number
        if self.updates % self.config.log_every:
            return None
        return max(each or 0 for each in processes.gathered(number)) or None

    def _append(self, file: GrowingFile, values: Mapping[str, float]) -> None:
        if not self.ranks.writes:
            return
        heading = b"" if file.size else row(("update", *values))
        file.append(heading + row((self.updates, *(repr(float(value)) for value in values.values()))))

    def _stopped_by_data(self, error: DataError) -> int:
        if self.ranks.processes == 1 and not error.of_test:
            self.save()
        say(f"{error}. Mend it, and the same command goes on from update {self.saved or 0:,}")
        return BAD_DATA

    def _say(self, sentence: str) -> None:
        if self.ranks.writes:
            say(sentence)


def identity(config: TrainingConfig) -> dict[str, Any]:
    """The settings that decide the numbers."""
    return {key: value for key, value in asdict(config).items() if key not in config.NOT_COMPARED}


def check_same(folder: Path, config: TrainingConfig, count: int, meta: Mapping[str, Any]) -> None:
    """Raises ValueError if a checkpoint's `meta` is of another configuration."""
    for key, value in identity(config).items():
        if meta["config"].get(key) != value:
            raise ValueError(
                f"{folder} holds a run with {key}={meta['config'].get(key)}, not {key}={value}: "
                "name another folder with hydra.run.dir="
            )
    if meta["processes"] != count:
        raise ValueError(f"{folder} holds a run of {meta['processes']} processes, not {count}: start as many again")
