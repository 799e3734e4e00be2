"""Writes a run's checkpoints, and gives a new trainer the state of one.

checkpoints/frames-000000120000/
    network target optimizer agent replay env monitor projector trainer    .safetensors
    replay-<random>.bin    segments of the replay, most of them linked from earlier checkpoints
    meta.json              configuration, counters, lengths of the CSV files, names of the segments
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nap_rl import checkpoint
from nap_rl.agents.divergence import Diverged
from nap_rl.agents.trainer import Trainer
from nap_rl.checkpoint import nested
from nap_rl.logging import Progress, RunLog
from nap_rl.replay import segments
from nap_rl.replay.segments import Segment

KIND = "frames-"


class CheckpointsFailed(RuntimeError):
    """Too many checkpoints in a row could not be written."""


@dataclass(frozen=True)
class CheckpointRhythm:
    """When a checkpoint is due, and how many are kept.

    Attributes:
        every_frames, every_seconds: frames or seconds between two checkpoints; None for never.
        keep: newest checkpoints that stay, 2 or more.
        max_failures: failures in a row that end the run.
        replay: whether a checkpoint holds the replay. Without it a run cannot be resumed.
    """

    every_frames: int | None = None
    every_seconds: float | None = None
    keep: int = 2
    max_failures: int = 3
    replay: bool = True


class Checkpointer:
    """Writes the checkpoints of `trainer`'s run into `folder`/checkpoints.

    Args:
        about: more entries for meta.json, such as the configuration.
    """

    def __init__(
        self,
        folder: Path,
        trainer: Trainer,
        log: RunLog,
        display: Progress,
        rhythm: CheckpointRhythm,
        about: Mapping[str, Any],
    ) -> None:
        self.parent = folder / "checkpoints"
        self.trainer = trainer
        self.log = log
        self.display = display
        self.rhythm = rhythm
        self.about = about
        self.failures = 0  # in a row
        self.last: Path | None = None
        self._segments: list[Segment] = []
        self._frames = trainer.frames  # at the last checkpoint or failure
        self._clock = time.monotonic()
        self._started = time.monotonic()
        self._seconds = 0.0  # this process spent on checkpoints

    def resumed_from(self, path: Path, saved: checkpoint.Checkpoint) -> None:
        """Begin from the checkpoint `path`, whose state the trainer has: later ones link its segments."""
        self.last = path
        self._segments = [Segment(**segment) for segment in saved.meta["segments"]]
        self._frames = self.trainer.frames

    def save_if_due(self) -> None:
        """Call this between two steps. Raises as `save`."""
        frames, seconds = self.trainer.frames - self._frames, time.monotonic() - self._clock
        rhythm = self.rhythm
        if (
            (self.last is None and self.failures == 0)  # at the start, to learn whether the disk takes one
            or (rhythm.every_frames is not None and frames >= rhythm.every_frames)
            or (rhythm.every_seconds is not None and seconds >= rhythm.every_seconds)
        ):
            self.save()

    def save(self) -> Path | None:
        """Write a checkpoint, unless the last one is of this step. Returns its path, or None if the disk refuses it.

        Raises:
            Diverged: a weight is NaN or infinite. The earlier checkpoints stay.
            CheckpointsFailed: the failure was one too many.
        """
        name = f"{KIND}{self.trainer.frames:012d}"
        if self.last is not None and self.last.name == name:
            return self.last
        self._check_weights()
        is_first = self.last is None
        began = time.monotonic()
        try:
            self.last = self._write(name)
            self.failures = 0
        except OSError as error:
            self.failures += 1
            self.display.note(
                f"warning: checkpoint {name} could not be written, the earlier ones are untouched "
                f"(failure {self.failures} of {self.rhythm.max_failures}): {error}"
            )
        ended = time.monotonic()
        self._frames, self._clock = self.trainer.frames, ended
        self._seconds += ended - began
        self.trainer.records.checkpoint_seconds += ended - began
        if self.failures >= self.rhythm.max_failures:
            raise CheckpointsFailed(f"{self.failures} checkpoints in a row could not be written to {self.parent}")
        if self.failures:
            return None
        share = self._seconds / max(ended - self._started, 1e-9)
        so_far = "" if is_first else f", {share:.1%} of the time so far"  # before the first the run did nothing else
        self.display.note(f"checkpoint {name}: {ended - began:.2f} s{so_far}")
        return self.last

    def _write(self, name: str) -> Path:
        self.log.sync()
        replay = self.trainer.agent.replay
        planned = segments.plan(replay, self._segments) if self.rhythm.replay else []
        tensors, state = nested.flatten(self.trainer.state_dict())
        meta = {
            **self.about,
            "frames": self.trainer.frames,
            "agent_steps": self.trainer.agent_steps,
            "updates": self.trainer.agent.updates,
            "threads": torch.get_num_threads(),
            "log": self.log.state_dict(),
            "has_replay": self.rhythm.replay,
            "segments": [asdict(segment) for segment in planned],
            "state": state,
        }
        blobs = {segment.name: partial(segments.encode, replay, segment) for segment in planned}
        path = checkpoint.save(self.parent, name, tensors=tensors, meta=meta, blobs=blobs, keep=self.rhythm.keep)
        self._segments = planned
        return path

    def _check_weights(self) -> None:
        trainer = self.trainer
        for name, weight in trainer.agent.network.named_parameters():
            if not bool(torch.isfinite(weight).all()):
                raise Diverged(f"{name} is not finite at update {trainer.agent.updates}, frame {trainer.frames}")


def restore(trainer: Trainer, saved: checkpoint.Checkpoint) -> None:
    """Give a new trainer the state of a checkpoint.

    Raises:
        ValueError: the checkpoint holds no replay, or is of another configuration.
    """
    if not saved.meta.get("has_replay"):
        raise ValueError("the checkpoint holds no replay (checkpoint.replay=false): its run cannot be resumed")
    trainer.load_state_dict(nested.unflatten(saved.tensors, saved.meta["state"]))
    for segment in (Segment(**each) for each in saved.meta["segments"]):
        segments.decode(trainer.agent.replay, segment, saved.blobs[segment.name].read_bytes())


def report_divergence(folder: Path, trainer: Trainer, reason: str) -> Path:
    """Write `diverged/update-<n>/` with the last batch, the weights, and norms as JSON. Returns its path."""
    agent = trainer.agent
    layers = {
        name: {
            "weight_norm": float(weight.detach().norm()),
            "gradient_norm": None if weight.grad is None else float(weight.grad.norm()),
            "not_finite": int((~torch.isfinite(weight.detach())).sum()),
        }
        for name, weight in agent.network.named_parameters()
    }
    batch = {} if agent.batch is None else agent.batch._asdict()
    return checkpoint.save(
        folder / "diverged",
        f"update-{agent.updates:012d}",
        tensors={"batch": batch, "network": agent.network.state_dict()},
        meta={
            "reason": reason,
            "frames": trainer.frames,
            "updates": agent.updates,
            "learning_rate": float(agent.optimizer.param_groups[0]["lr"]),
            "batch": {key: _described(value) for key, value in batch.items()},
            "layers": layers,
        },
    )


def _described(values: torch.Tensor) -> Any:
    return values.tolist() if values.ndim == 1 else {"shape": list(values.shape), "mean": float(values.float().mean())}
