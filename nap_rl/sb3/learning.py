"""How a zip was trained, for an agent that learns on: every setting is taken or named in a warning.

A number out of range becomes the nearest one in range, so that a policy acts whatever it learnt with. Refused are
values that are no numbers, and numbers so far out that SB3 cannot have trained with them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nap_rl.sb3.archive import Archive, ZipError, number

SB3_TRAIN_FREQ = 4  # SB3's default
SB3_BUFFERS = "stable_baselines3.common.buffers"
ENOUGH_UPDATES = 100  # after so many, their number shows how often they were made
# SB3 with a version below this keeps interval // n_envs as target_update_interval.
DIVIDED_BEFORE = {"DQN": (2, 0), "QRDQN": (2, 4)}


@dataclass(frozen=True)
class Bounds:
    """Numbers that learning can use, and numbers that SB3 can have trained with."""

    low: float
    high: float
    possible: tuple[float, float] = (-1e30, 1e30)


BOUNDS = {
    "gamma": Bounds(0.0, 1.0, (0.0, 2.0)),
    "n_steps": Bounds(1, 1_000, (1, 1e9)),
    "batch_size": Bounds(1, 1 << 20, (1, 1e12)),
    "max_grad_norm": Bounds(0.0, math.inf, (-1e30, math.inf)),
    "tau": Bounds(0.0, 1.0),
    "target_update_interval": Bounds(1, 1e15),
    "n_envs": Bounds(1, 1e6, (1, 1e6)),
    "exploration_rate": Bounds(0.0, 1.0),
    "_n_updates": Bounds(0, 1 << 60),
    "lr": Bounds(0.0, 10.0, (-0.999, 1e6)),
    "beta1": Bounds(0.0, 0.9999999, (0.0, 1.0)),
    "beta2": Bounds(0.0, 0.9999999, (0.0, 1.0)),
    "eps": Bounds(0.0, 1.0, (0.0, 1e6)),
    "weight_decay": Bounds(0.0, 1.0, (0.0, 1e6)),
}


@dataclass(frozen=True)
class Learning:
    """Settings of an agent that learns on as the zip's did."""

    discount: float
    n_steps: int
    reward_clip: float | None
    batch_size: int
    target_every_updates: int
    tau: float
    max_grad_norm: float | None
    priority_exponent: float
    uniform_probability: float
    updates: int
    exploration_rate: float


def learning(archive: Archive, algorithm: str, pixels: bool, adam: Mapping[str, Any]) -> Learning:
    """The settings of a zip of "DQN", "QRDQN" or "Rainbow"; warns of each that is not taken.

    Args:
        pixels: whether observations are images; SB3's AtariWrapper clips their rewards to [-1, 1].
        adam: the settings that `adam_settings` gave.

    Raises:
        ZipError: a setting is no number, or one that SB3 cannot have trained with.
    """
    hints, ours = archive.hints, algorithm == "Rainbow"
    interval = taken(archive, hints, "target_update_interval", 10_000)
    if archive.version and archive.version < DIVIDED_BEFORE.get(algorithm, (0,)):
        interval *= taken(archive, hints, "n_envs", 1)
    clip = number(hints, "reward_clip", 0.0, 0.0, math.inf) if ours else float(pixels)
    if not ours:
        _warn_of_schedules(archive, adam)
    return Learning(
        discount=taken(archive, hints, "gamma", 0.99),
        n_steps=int(taken(archive, hints, "n_steps", 1)),
        reward_clip=clip or None,
        batch_size=int(taken(archive, hints, "batch_size", 32)),
        target_every_updates=max(int(interval / _transitions_an_update(archive, ours)), 1),
        tau=taken(archive, hints, "tau", 1.0),
        max_grad_norm=taken(archive, hints, "max_grad_norm", 0.0) or None,
        priority_exponent=number(hints, "priority_exponent", 0.0, 0.0, 10.0),
        uniform_probability=number(hints, "uniform_probability", 0.0, 0.0, 1.0),
        updates=int(taken(archive, hints, "_n_updates", 0)),
        exploration_rate=taken(archive, hints, "exploration_rate", 0.0),
    )


def adam_settings(archive: Archive, default_eps: float) -> dict[str, Any]:
    """lr, betas, eps and weight_decay for torch.optim.Adam, in range; warns of what is not taken."""
    groups = archive.optimizer.get("param_groups")
    group = groups[0] if isinstance(groups, list) and groups and isinstance(groups[0], dict) else {}
    betas = group.get("betas")
    if not isinstance(betas, list) or len(betas) != 2:
        betas = [0.9, 0.999]
    named = {**group, "beta1": betas[0], "beta2": betas[1]}
    for name in ("amsgrad", "maximize"):
        if group.get(name) is True:
            warn(archive, f"{name}=True of the optimizer is not taken: updates are those of plain Adam")
    return {
        "lr": taken(archive, named, "lr", 1e-4),
        "betas": (taken(archive, named, "beta1", 0.9), taken(archive, named, "beta2", 0.999)),
        "eps": taken(archive, named, "eps", default_eps),
        "weight_decay": taken(archive, named, "weight_decay", 0.0),
    }


def trained_with_adam(archive: Archive) -> bool:
    """Whether the optimizer is Adam, so that its moments are Adam's; warns where it is not."""
    kwargs = archive.hints.get("policy_kwargs")
    name = str(kwargs.get("optimizer_class", ".Adam'")) if isinstance(kwargs, dict) else ".Adam'"
    if ".Adam'" in name:
        return True
    warn(archive, f"was trained with optimizer_class {name:.80}: Adam takes its place, without moments")
    return False


def taken(archive: Archive, hints: Mapping[str, Any], name: str, default: float) -> float:
    """A number in its range, the nearest one where it is out of it; a warning where it is not the zip's."""
    if hints is archive.hints and name in archive.dropped:
        warn(archive, f"{name} is pickled as {archive.dropped[name]} and is not read: {default:g} is taken")
    bounds, value = BOUNDS[name], hints.get(name)
    if value is None:
        return default
    low, high = bounds.possible
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ZipError(f"has {name}={value!r:.60}, expected a number in [{bounds.low:g}, {bounds.high:g}]")
    nearest = min(max(value, bounds.low), bounds.high)
    if nearest != value:
        warn(archive, f"{name}={value:g} is out of [{bounds.low:g}, {bounds.high:g}]: {nearest:g} is taken")
    return nearest


def warn(archive: Archive, what: str) -> None:
    """A warning that begins with the file's name."""
    warnings.warn(f"{archive.path} {what}" if what.startswith("was ") else f"{archive.path}: {what}", stacklevel=6)


def _transitions_an_update(archive: Archive, ours: bool) -> float:
    """Transitions between two updates.

    SB3 pickles `train_freq`. After `ENOUGH_UPDATES`, the number of updates tells it: steps of the vector after
    learning_starts / updates * gradient_steps. Otherwise it is SB3's default.
    """
    hints = archive.hints
    if ours:
        return number(hints, "train_freq", 4, 1, 1e9) / number(hints, "gradient_steps", 1, 1, 1e9)
    updates_a_time = hints.get("gradient_steps", 1)
    if "gradient_steps" in archive.dropped or type(updates_a_time) is not int or updates_a_time == 0:
        warn(archive, f"gradient_steps={updates_a_time!r:.40} is not taken: 1 is")
        updates_a_time = 1
    if updates_a_time < 0:  # as many updates as transitions
        return 1.0
    numbers = [hints.get(name) for name in ("num_timesteps", "learning_starts", "_n_updates", "n_envs")]
    if all(type(value) is int for value in numbers):
        timesteps, starts, updates, n_envs = (int(value) for value in numbers)  # type: ignore[arg-type]
        if updates >= ENOUGH_UPDATES * updates_a_time and n_envs > 0:
            times = updates / updates_a_time
            train_freq = (timesteps - starts) / n_envs / times
            if train_freq >= 0.95 and abs(train_freq - round(train_freq)) <= 0.05 * train_freq:
                return round(train_freq) * n_envs / updates_a_time
            warn(archive, f"train_freq is pickled and not read: {SB3_TRAIN_FREQ} steps are taken")
    return SB3_TRAIN_FREQ / updates_a_time


def _warn_of_schedules(archive: Archive, adam: Mapping[str, Any]) -> None:
    hints = archive.hints
    if isinstance(hints.get("learning_rate"), dict):
        warn(archive, f"learning_rate is a schedule, which is pickled and not read: it stays at {adam['lr']:g}")
    rate, final = hints.get("exploration_rate"), hints.get("exploration_final_eps")
    if isinstance(rate, (int, float)) and isinstance(final, (int, float)) and rate > final + 1e-9:
        warn(archive, f"the exploration schedule to exploration_final_eps={final:g} is not taken: it stays at {rate:g}")
    buffer = hints.get("replay_buffer_class")
    if isinstance(buffer, dict) and buffer.get("__module__", SB3_BUFFERS) != SB3_BUFFERS:
        warn(
            archive,
            f"replay_buffer_class of {buffer['__module__']!r:.80} is not taken: transitions are drawn uniformly",
        )


SB3_BUFFERS = "stable_baselines3.common.buffers"
