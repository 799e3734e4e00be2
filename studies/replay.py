"""Schedule replay, Figure 3 of the paper: the implicit schedule of an un-projected network, made explicit.

One network is un-projected. Its followers start from the same weights, see the same batches, and are projected to
rho_l = ||theta_l(0)|| after each update. Before each update the norm ||theta_l|| of each normalised layer l of the
un-projected network sets the followers' rates (eta is the base rate; power is 1 for Adam, 2 for SGD):

    constant     eta
    global       eta (||rho|| / ||theta||)^power, norms over all layers: one rate for all
    layer        eta (rho_l / ||theta_l||)^power
    exact        layer, and the gradient of layer l times rho_l / ||theta_l||, which Adam's moments expect

With SGD `layer` is exact too. The output layer is not projected and keeps eta.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from nap_rl.checkpoint import Checkpoint
from nap_rl.images import load_images
from nap_rl.nap import weight_groups
from nap_rl.nap.groups import split_groups
from nap_rl.studies.config import SUMMARY, TASKS, StudyConfig, root_of
from nap_rl.studies.learner import Learner
from nap_rl.studies.stream import (
    Row,
    load,
    save,
    summarise,
    task_data,
    task_row,
    write_csv,
    write_json,
)

FOLLOWERS = ("constant", "global", "layer", "exact")


def run(config: StudyConfig, folder: Path) -> dict[str, Row]:
    """Trains the five networks side by side and returns a summary of each.

    tasks.csv has two more columns. `network` is unprojected or one of FOLLOWERS. `angle` is the angle in degrees
    between the network's normalised layers and the un-projected network's, the mean over layers. Goes on from the
    folder's newest checkpoint. Computes in float64: in float32, rounding would hide that `exact` is exact.
    """
    started, before = time.perf_counter(), 0.0
    images = load_images(config.data.name, root_of(config.data), config.data.images, config.seed).double()
    leader = Learner(replace(config, nap=False), images)
    followers = {name: Follower(name, config, images) for name in FOLLOWERS}
    rows: dict[str, list[Row]] = {name: [] for name in ("unprojected", *FOLLOWERS)}
    weights = normalised_weights(leader)
    rho = norms_of(weights)
    learners = {"unprojected": leader, **{name: f.learner for name, f in followers.items()}}
    if (found := load(config, folder)) is not None:
        load_states(learners, found)
        rows, before = found.meta["rows"], found.meta["seconds"]
    for task in range(len(rows["unprojected"]), config.tasks):
        labels, batches = task_data(config, task)
        right = torch.zeros(len(rows), dtype=torch.long)
        for batch in batches:
            x, y = images[batch], labels[batch]
            shrink = (rho / norms_of(weights)).tolist()
            total = float(rho.norm() / norms_of(weights).norm())
            right[0] += (leader.update(x, y).argmax(1) == y).sum()
            for number, follower in enumerate(followers.values(), start=1):
                follower.shrink = [total] * len(shrink) if follower.name == "global" else shrink
                right[number] += (follower.learner.update(x, y).argmax(1) == y).sum()
        online = right.double() / batches.numel()
        for share, (name, learner) in zip(online, learners.items(), strict=True):
            row = task_row(learner, task, labels, share)
            rows[name].append(row | {"angle": angle(weights, normalised_weights(learner))})
        if (task + 1) % config.save_every == 0:
            meta = {"updates": leader.updates, "rows": rows, "seconds": before + time.perf_counter() - started}
            save(config, folder, task + 1, states(learners), meta)
    write_csv(folder / TASKS, [{"network": name, **row} for name in rows for row in rows[name]])
    summaries = {name: summarise(found) | {"angle": found[-1]["angle"]} for name, found in rows.items()}
    seconds = round(before + time.perf_counter() - started, 2)
    write_json(folder / SUMMARY, {"config": asdict(config), "networks": summaries, "seconds": seconds})
    return summaries


def states(learners: Mapping[str, Learner]) -> dict[str, dict[str, Tensor]]:
    """Returns the parts of every learner's state, under names such as "layer.optimizer"."""
    return {f"{name}.{part}": state for name, learner in learners.items() for part, state in learner.state().items()}


def load_states(learners: Mapping[str, Learner], found: Checkpoint) -> None:
    for name, learner in learners.items():
        mine = {key.split(".")[1]: state for key, state in found.tensors.items() if key.split(".")[0] == name}
        learner.load_state(mine, found.meta["updates"])


class Follower:
    """A projected network whose rates follow the un-projected one. Set `shrink` before each of its updates.

    Args:
        name: one of FOLLOWERS.
    """

    def __init__(self, name: str, config: StudyConfig, images: Tensor) -> None:
        self.name = name
        self.learner = Learner(replace(config, nap=True), images)
        self.weights = normalised_weights(self.learner)
        self.rate = config.learning_rate
        self.power = 1 if config.optimizer == "adam" else 2
        self.shrink = [1.0] * len(self.weights)  # rho_l / ||theta_l|| of the un-projected network, now
        split_groups(self.learner.optimizer, {str(i): [weight] for i, weight in enumerate(self.weights)})
        self.learner.optimizer.register_step_pre_hook(lambda *_: self.follow())

    def follow(self) -> None:
        if self.name == "constant":
            return
        groups = [group for group in self.learner.optimizer.param_groups if "layer" in group]
        for group, weight, shrink in zip(groups, self.weights, self.shrink, strict=True):
            group["lr"] = self.rate * shrink**self.power
            if self.name == "exact" and self.power == 1 and weight.grad is not None:
                weight.grad.mul_(shrink)


def normalised_weights(learner: Learner) -> list[Tensor]:
    """Returns the weight tensors that NaP projects: all but the output layer's."""
    *hidden, _ = weight_groups(learner.network).values()
    return [weight for group in hidden for weight in group]


@torch.no_grad()
def norms_of(weights: list[Tensor]) -> Tensor:
    return torch.stack([weight.norm() for weight in weights])


@torch.no_grad()
def angle(these: list[Tensor], those: list[Tensor]) -> float:
    """Returns the angle between two networks' weights in degrees, the mean over tensors.

    Computed from the chord, which is exact near 0 where the arc cosine is not.
    """
    units = [(a / a.norm(), b / b.norm()) for a, b in zip(these, those, strict=True)]
    chords = torch.stack([(a - b).norm() for a, b in units])
    return math.degrees(float((2 * torch.asin(chords / 2)).mean()))
