"""Random labels, drawn again and again: the stream of tasks that Figures 1, 2 and 5 of the paper are about.

    task k:  labels[k] ~ uniform over the classes, one for each image        (decided by seed and k alone)
             batches[k] [steps_per_task, batch_size], indices of images      (likewise)
             steps_per_task updates; then one row of tasks.csv

Nothing else is random after initialisation, so a run goes on from any task boundary to the same files, bit by
bit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nap_rl import checkpoint
from nap_rl.diagnostics import activations, dead_fraction
from nap_rl.studies.config import StudyConfig, root_of
from nap_rl.studies.data import CLASSES, load_images
from nap_rl.studies.learner import Learner

Row = dict[str, float]

TASKS, STEPS, SUMMARY = "tasks.csv", "steps.csv", "summary.json"


def run(config: StudyConfig, folder: Path) -> Row:
    """Runs the stream in `folder`, from its newest checkpoint if there is one; returns the summary.

    Writes tasks.csv (one row a task), steps.csv (one row every `measure_every` updates, if that is set) and,
    last, summary.json. Raises ValueError if the folder's checkpoint is of another config.
    """
    started = time.perf_counter()
    images = load_images(config.data.name, root_of(config.data), config.data.images, config.seed)
    learner = Learner(config, images)
    rows, steps, seconds = _resume(config, folder, learner)
    for task in range(len(rows), config.tasks):
        rows.append(learn_task(config, learner, task, steps))
        if (task + 1) % config.save_every == 0:
            _save(config, folder, learner, rows, steps, seconds + time.perf_counter() - started)
    write_csv(folder / TASKS, rows)
    if steps:
        write_csv(folder / STEPS, steps)
    summary = summarise(rows) | {"seconds": round(seconds + time.perf_counter() - started, 2)}
    write_json(folder / SUMMARY, {"config": asdict(config), **summary})
    return summary


def task_data(config: StudyConfig, task: int) -> tuple[Tensor, Tensor]:
    """Labels [images] and batch indices [steps_per_task, batch_size] of a task, int64."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + task)
    labels = torch.randint(CLASSES, (config.data.images,), generator=generator)
    batches = torch.randint(config.data.images, (config.steps_per_task, config.batch_size), generator=generator)
    return labels, batches


def learn_task(config: StudyConfig, learner: Learner, task: int, steps: list[Row]) -> Row:
    """One task; appends to `steps` what is measured on the way. One host sync, at the end."""
    labels, batches = task_data(config, task)
    targets = labels[batches]
    predictions: list[Tensor] = []
    dead: list[Tensor] = []
    for number, (batch, y) in enumerate(zip(batches, targets, strict=True), start=1):
        predictions.append(learner.update(learner.images.index_select(0, batch), y))
        if config.measure_every and number % config.measure_every == 0:
            dead.append(_evaluate(learner)[1])
    for number, value in enumerate(dead, start=1):
        update = task * config.steps_per_task + number * config.measure_every
        steps.append({"update": update, "task": task, "dead_fraction": float(value)})
    right = torch.stack(predictions) == targets
    return task_row(learner, task, labels, right.double().mean())


def task_row(learner: Learner, task: int, labels: Tensor, online: Tensor) -> Row:
    """The columns of tasks.csv; accuracy, loss and dead units at the end of the task are over all images."""
    logits, dead = _evaluate(learner)
    with torch.no_grad():
        norm = torch.stack([p.norm() for p in learner.network.parameters()]).norm()
        loss = F.cross_entropy(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
    values = torch.stack([v.double() for v in (online, accuracy, loss, norm, dead)]).tolist()
    names = ("online_accuracy", "final_accuracy", "final_loss", "parameter_norm", "dead_fraction")
    return {"task": task, **dict(zip(names, values, strict=True))}


@torch.no_grad()
def _evaluate(learner: Learner) -> tuple[Tensor, Tensor]:
    """Logits of all images and the share of dead units over all hidden layers."""
    with activations(learner.network) as hidden:
        logits: Tensor = learner.network(learner.images)
    units = torch.tensor([float(h.shape[1]) for h in hidden.values()])
    shares = torch.stack([dead_fraction(h) for h in hidden.values()])
    return logits, (shares * units).sum() / units.sum()


def summarise(rows: Sequence[Row]) -> Row:
    """Mean online accuracy of tasks 5 - 15 % and of the last 10 %: the very first tasks meet fresh weights
    and are easier for everybody."""
    online = [row["online_accuracy"] for row in rows]
    n = len(online)
    early = online[n * 5 // 100 : max(n * 15 // 100, 1)]
    late = online[-max(n // 10, 1) :]
    return {
        "early_accuracy": sum(early) / len(early),
        "late_accuracy": sum(late) / len(late),
        "parameter_norm": rows[-1]["parameter_norm"],
        "dead_fraction": rows[-1]["dead_fraction"],
    }


def write_csv(path: Path, rows: Sequence[Mapping[str, float | str]]) -> None:
    lines = [",".join(rows[0])] + [",".join(str(value) for value in row.values()) for row in rows]
    _write(path, "\n".join(lines) + "\n")


def write_json(path: Path, value: Mapping[str, object]) -> None:
    _write(path, json.dumps(value, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    """All of the file or nothing: it appears under its name when it is whole."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def _save(
    config: StudyConfig, folder: Path, learner: Learner, rows: list[Row], steps: list[Row], seconds: float
) -> None:
    meta = {
        "config": asdict(config),
        "updates": learner.updates,
        "rows": rows,
        "steps": steps,
        "seconds": seconds,
    }
    name = f"task-{len(rows):09d}"
    checkpoint.save(folder / "checkpoints", name, tensors=learner.state(), meta=meta)


def _resume(config: StudyConfig, folder: Path, learner: Learner) -> tuple[list[Row], list[Row], float]:
    """Rows, steps and seconds so far, after the learner was brought to that point; nothing of each for a new
    folder."""
    newest = checkpoint.latest(folder / "checkpoints")
    if newest is None:
        return [], [], 0.0
    found = checkpoint.load(newest)
    if found.meta["config"] != asdict(config):
        raise ValueError(f"{folder} holds a study with another config; give hydra.run.dir a new folder.")
    learner.load_state(found.tensors, found.meta["updates"])
    return found.meta["rows"], found.meta["steps"], found.meta["seconds"]
