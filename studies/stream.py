"""A stream of tasks with random labels (Figures 1, 2 and 5 of the paper).

    task k:  labels[k] [images] ~ uniform over the classes
             batches[k] [steps_per_task, batch_size], indices of images
             steps_per_task updates, then one row of tasks.csv

Seed and k decide labels and batches. Nothing else is random after initialisation, so a run that goes on from a task
boundary writes the same files to the bit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nap_rl import checkpoint
from nap_rl.diagnostics import activations, dead_fraction, jacobian_norm, jvp
from nap_rl.files import write_atomic
from nap_rl.images import CLASSES, load_images
from nap_rl.studies.config import STEPS, SUMMARY, TASKS, StudyConfig, root_of
from nap_rl.studies.learner import Learner, gains_and_offsets

Row = dict[str, float]


def run(config: StudyConfig, folder: Path) -> Row:
    """Runs the stream in `folder`, from its newest checkpoint if there is one; returns the summary.

    Writes tasks.csv (one row a task), steps.csv (one row every `measure_every` updates; not with 0) and, last,
    summary.json.

    Raises:
        ValueError: the folder's checkpoint has another config.
    """
    started = time.perf_counter()
    images = load_images(config.data.name, root_of(config.data), config.data.images, config.seed)
    learner = Learner(config, images)
    rows: list[Row] = []
    steps: list[Row] = []
    seconds = 0.0
    if (found := load(config, folder)) is not None:
        learner.load_state(found.tensors, found.meta["updates"])
        rows, steps, seconds = found.meta["rows"], found.meta["steps"], found.meta["seconds"]
    for task in range(len(rows), config.tasks):
        rows.append(learn_task(config, learner, task, steps))
        if (task + 1) % config.save_every == 0:
            so_far = seconds + time.perf_counter() - started
            meta = {"updates": learner.updates, "rows": rows, "steps": steps, "seconds": so_far}
            save(config, folder, task + 1, learner.state(), meta)
    write_csv(folder / TASKS, rows)
    if steps:
        write_csv(folder / STEPS, steps)
    summary = summarise(rows) | {"seconds": round(seconds + time.perf_counter() - started, 2)}
    write_json(folder / SUMMARY, {"config": asdict(config), **summary})
    return summary


def task_data(config: StudyConfig, task: int) -> tuple[Tensor, Tensor]:
    """Returns a task's labels [images] and batch indices [steps_per_task, batch_size], int64."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + task)
    labels = torch.randint(CLASSES, (config.data.images,), generator=generator)
    batches = torch.randint(config.data.images, (config.steps_per_task, config.batch_size), generator=generator)
    return labels, batches


def learn_task(config: StudyConfig, learner: Learner, task: int, steps: list[Row]) -> Row:
    """Runs one task and returns its row of tasks.csv; appends rows of steps.csv to `steps`."""
    if task > 0:
        learner.at_switch()
    labels, batches = task_data(config, task)
    targets = labels[batches]
    logits: list[Tensor] = []
    dead: list[Tensor] = []
    for number, (batch, y) in enumerate(zip(batches, targets, strict=True), start=1):
        logits.append(learner.update(learner.images.index_select(0, batch), y))
        if config.measure_every and number % config.measure_every == 0:
            dead.append(dead_units(learner))
    for number, value in enumerate(dead, start=1):
        update = task * config.steps_per_task + number * config.measure_every
        steps.append({"update": update, "task": task, "dead_fraction": float(value)})
    right = torch.stack(logits).argmax(2) == targets
    return task_row(learner, task, labels, right.double().mean())


def task_row(learner: Learner, task: int, labels: Tensor, online: Tensor) -> Row:
    """Returns the row of tasks.csv. All columns but the online accuracy measure the network now, on all images.

    The Jacobian's directions are the same for every task.
    """
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(learner.images.shape, generator=generator, dtype=learner.images.dtype)
    with torch.no_grad(), activations(learner.network) as hidden:
        logits, tangent = jvp(learner.network, learner.images, direction)
        columns = {
            "online_accuracy": online,
            "final_accuracy": (logits.argmax(1) == labels).double().mean(),
            "final_loss": F.cross_entropy(logits, labels),
            "parameter_norm": torch.stack([p.norm() for p in learner.network.parameters()]).norm(),
            "jacobian_norm": jacobian_norm(tangent),
            "dead_fraction": _dead(hidden),
            "offset": _mean_offset(learner),
        }
        values = torch.stack([column.double() for column in columns.values()]).tolist()
    return {"task": task, **dict(zip(columns, values, strict=True))}


def _mean_offset(learner: Learner) -> Tensor:
    """Returns mean(offset / |scale|) over all units, in standard deviations; 0 without scale and offset."""
    shifts = [offset / gain.abs() for gain, offset in gains_and_offsets(learner.network)]
    return torch.cat(shifts).mean() if shifts else torch.zeros(())


@torch.no_grad()
def dead_units(learner: Learner) -> Tensor:
    """Returns the share of hidden units that are 0 on every image."""
    with activations(learner.network) as hidden:
        learner.network(learner.images)
    return _dead(hidden)


def _dead(hidden: Mapping[str, Tensor]) -> Tensor:
    units = torch.tensor([float(h.shape[1]) for h in hidden.values()])
    shares = torch.stack([dead_fraction(h) for h in hidden.values()])
    return (shares * units).sum() / units.sum()


def summarise(rows: Sequence[Row]) -> Row:
    """Returns means over early tasks (5-15 %) and late tasks (last 10 %), and the last row's norms.

    The first 5 % are left out: they meet fresh weights and are easier.
    """
    n = len(rows)
    early, late = rows[n * 5 // 100 : max(n * 15 // 100, 1)], rows[-max(n // 10, 1) :]

    def mean(part: Sequence[Row], name: str) -> float:
        return sum(row[name] for row in part) / len(part)

    return {
        "early_accuracy": mean(early, "online_accuracy"),
        "late_accuracy": mean(late, "online_accuracy"),
        "late_loss": mean(late, "final_loss"),
        "late_jacobian_norm": mean(late, "jacobian_norm"),
        "offset": rows[-1]["offset"],
        "parameter_norm": rows[-1]["parameter_norm"],
        "dead_fraction": rows[-1]["dead_fraction"],
    }


def write_csv(path: Path, rows: Sequence[Mapping[str, float | str]]) -> None:
    lines = [",".join(rows[0])] + [",".join(str(value) for value in row.values()) for row in rows]
    write_atomic(path, "\n".join(lines) + "\n")


def write_json(path: Path, value: Mapping[str, object]) -> None:
    write_atomic(path, json.dumps(value, indent=1) + "\n")


def save(
    config: StudyConfig,
    folder: Path,
    tasks: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    meta: Mapping[str, object],
) -> None:
    """Writes a checkpoint after so many tasks, for `load`."""
    meta = {"config": _identity(config), **meta}
    checkpoint.save(folder / "checkpoints", f"task-{tasks:09d}", tensors=tensors, meta=meta)


def load(config: StudyConfig, folder: Path) -> checkpoint.Checkpoint | None:
    """Returns the newest sound checkpoint, None in a new folder. Raises ValueError if it has another config."""
    newest = checkpoint.latest(folder / "checkpoints")
    if newest is None:
        return None
    found = checkpoint.load(newest)
    if found.meta["config"] != _identity(config):
        raise ValueError(f"{folder} holds a study with another config; give hydra.run.dir a new folder.")
    return found


def _identity(config: StudyConfig) -> dict[str, Any]:
    """Returns the settings that decide the numbers (`jobs` does not), as JSON reads them back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    del plain["jobs"]
    return plain
