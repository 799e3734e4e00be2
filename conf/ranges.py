"""The range of every number of the configuration: one table beside the types in schema.py.

Each upper bound is where the reader of the number ends: ale-py counts in C++ int, torch seeds and numpy's clocks in
int64, weights and losses are float32, a layer has at most `MOST_UNITS` units. Options of plasticity methods are checked
by the methods themselves, and here only for what a number can be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from nap_rl.envs.atari import FRAME_SKIP

INT32 = 2**31 - 1  # C++ int
INT64 = 2**63 - 1
FLOAT32 = 3.4e38
COUNT = 10**15  # more frames than anybody plays; exact in float64, and fits the names of checkpoints
MOST_UNITS = 1 << 20
MOST_ENVS = 4096  # emulators of one process


@dataclass(frozen=True)
class Range:
    """Numbers from low to high.

    Attributes:
        open: whether low itself is left out.
    """

    low: float
    high: float
    open: bool = False

    def refusal(self, value: float) -> str | None:
        """What is expected instead of `value`; None if it lies in the range. NaN lies in none."""
        if (self.low < value if self.open else self.low <= value) and value <= self.high:
            return None
        if self.high == 1.0 or self.high == 0.0:
            return f"expected a number in [{self.low:g}, {self.high:g}]"
        if value > self.high:
            return f"expected {self.high if isinstance(self.high, int) else format(self.high, 'g')} or less"
        if self.open:
            return f"expected a number above {self.low:g}"
        if isinstance(self.low, int):
            return f"expected {self.low} or more"
        return f"expected a number of {self.low:g} or more"


SHARE = Range(0.0, 1.0)
POSITIVE = Range(0.0, FLOAT32, open=True)
NOT_NEGATIVE = Range(0.0, FLOAT32)
AT_LEAST_ONE = Range(1, COUNT)
UNITS = Range(1, MOST_UNITS)
MOMENTUM = Range(0.0, 0.99999)  # 1 - momentum divides

RANGES: dict[str, Range] = {
    "seed": Range(0, INT64),
    "frames": Range(-INT64, COUNT),  # at least one step of all environments, which check.py says
    "agent.net_arch": UNITS,
    "agent.width": Range(1, 64),
    "agent.max_pool": Range(1, 1024),
    "agent.hidden": UNITS,
    "agent.head.atoms": Range(2, MOST_UNITS),
    "agent.head.v_min": Range(-FLOAT32, FLOAT32),
    "agent.head.v_max": Range(-FLOAT32, FLOAT32),
    "agent.head.quantiles": UNITS,
    "agent.head.samples": UNITS,
    "agent.head.target_samples": UNITS,
    "agent.head.acting_samples": UNITS,
    "agent.head.cosines": UNITS,
    "agent.head.kappa": POSITIVE,
    "agent.noisy_sigma0": NOT_NEGATIVE,
    "agent.n_steps": Range(1, INT32),
    "agent.discount": SHARE,
    "agent.reward_clip": POSITIVE,
    "agent.batch_size": UNITS,
    "agent.update_every_steps": Range(0.0, float(COUNT), open=True),
    "agent.target_every_updates": AT_LEAST_ONE,
    "agent.min_replay_steps": Range(-INT64, COUNT),  # at least n_steps + 1 of each environment, as above
    "agent.max_grad_norm": POSITIVE,
    "agent.learning_rate": POSITIVE,
    "agent.adam_eps": POSITIVE,
    "agent.epsilon.start": SHARE,
    "agent.epsilon.end": SHARE,
    "agent.epsilon.over_frames": AT_LEAST_ONE,
    "agent.epsilon.until_frames": AT_LEAST_ONE,
    "agent.priority_exponent": Range(0.0, 10.0),
    "agent.uniform_probability": SHARE,
    "agent.importance_exponent.start": SHARE,
    "agent.importance_exponent.end": SHARE,
    "agent.munchausen.alpha": SHARE,
    "agent.munchausen.temperature": POSITIVE,
    "agent.munchausen.clip": Range(-math.inf, 0.0),
    "env.num_envs": Range(1, MOST_ENVS),
    "env.frames_per_game": AT_LEAST_ONE,
    "env.frames_per_task": AT_LEAST_ONE,
    "env.visits": Range(1, 10**6),
    "env.stack": Range(1, 1024),
    "env.max_episode_steps": Range(1, INT32),
    "env.offset_std": NOT_NEGATIVE,
    "env.sticky_actions": SHARE,
    "env.cycles": Range(1, 10**6),
    "env.protocol.sticky_actions": SHARE,
    "env.protocol.noop_max": Range(1, INT32),
    "env.protocol.max_episode_frames": Range(FRAME_SKIP, INT32),
    "nap.every": AT_LEAST_ONE,
    "nap.regularize_coefficient": NOT_NEGATIVE,
    "optimizer.beta1": MOMENTUM,
    "optimizer.beta2": MOMENTUM,
    "optimizer.alpha": MOMENTUM,
    "optimizer.momentum": MOMENTUM,
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.ns_steps": Range(1, 99),  # torch refuses 100
    "optimizer.power": Range(1, 2),
    "schedule.start": SHARE,
    "schedule.end": SHARE,
    "schedule.over_frames": AT_LEAST_ONE,
    "schedule.warmup_start": SHARE,
    "schedule.warmup_frames": Range(0, COUNT),
    "schedule.cycles": Range(1, 300),
    "schedule.growth": Range(1.0, 10.0),  # its 299th power is a float64
    "schedule.cycle_frames": AT_LEAST_ONE,
    "schedule.patience_frames": AT_LEAST_ONE,
    "schedule.tolerance": NOT_NEGATIVE,
    "replay.capacity": Range(1, 10**12),
    "logger.every_updates": AT_LEAST_ONE,
    "logger.diagnostics_every_updates": AT_LEAST_ONE,
    "eval.every": AT_LEAST_ONE,
    "eval.episodes": Range(1, 10**9),
    "eval.num_envs": Range(1, MOST_ENVS),
    "eval.epsilon": SHARE,
    "checkpoint.keep": Range(2, 10**6),
    "checkpoint.max_failures": Range(1, 10**6),
}
WHOLE, ANY = Range(-INT64, INT64), Range(-FLOAT32, FLOAT32)


def check_ranges(settings: Any) -> None:
    """Raises ValueError for the first number of a configuration that lies outside of its range; names the key."""
    for key, value in numbers(settings):
        if key.startswith("plasticity.") and not math.isfinite(value):
            continue
        if (expected := range_of(key, value).refusal(value)) is not None:
            raise ValueError(f"{key}={value}, {expected}")


def range_of(key: str, value: float) -> Range:
    """The range of a setting; of one that the table leaves out, what an int64 or a float32 can be."""
    return RANGES.get(key, WHOLE if isinstance(value, int) else ANY)


def numbers(settings: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """(key, value) of every number in nested dataclasses and their lists."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from numbers(value, f"{path}{field.name}.")
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, (int, float)) and not isinstance(each, bool):
                yield f"{path}{field.name}", each
