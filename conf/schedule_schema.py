"""Types of `schedule=...`: the learning rate over a run or a visit. Units and values: see `nap_rl.conf.schema`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


@dataclass
class ScheduleConfig:
    """The learning rate, from the first update on; one of those below."""

    start: float = MISSING


@dataclass
class ConstantSchedule(ScheduleConfig):
    pass


@dataclass
class LinearSchedule(ScheduleConfig):
    end: float = MISSING
    over_frames: int | None = MISSING  # ends at this frame; null: with the run, or the visit where it restarts


@dataclass
class WarmedSchedule(ScheduleConfig):
    warmup_start: float = MISSING
    warmup_frames: int = MISSING  # 0: no warm-up, and nothing reads warmup_start


@dataclass
class CosineSchedule(WarmedSchedule):
    end: float = MISSING
    over_frames: int | None = MISSING  # as above


@dataclass
class RestartsSchedule(WarmedSchedule):
    end: float = MISSING
    over_frames: int | None = MISSING  # as above
    cycles: int = MISSING
    growth: float = MISSING


@dataclass
class RewarmSchedule(WarmedSchedule):
    end: float = MISSING
    cycle_frames: int | None = MISSING  # null: a tenth of the run, or of the visit where it restarts
    patience_frames: int | None = MISSING  # null: half a cycle
    tolerance: float = MISSING


@dataclass
class PiecewiseSchedule(WarmedSchedule):
    file: str = MISSING


Scope = Enum("Scope", ["global", "layer"])  # "global" is a word of Python's


@dataclass
class RecordedSchedule(WarmedSchedule):
    file: str = MISSING
    scope: Scope = MISSING


SCHEDULES: dict[str, type[ScheduleConfig]] = {
    "constant": ConstantSchedule,
    "linear": LinearSchedule,
    "cosine": CosineSchedule,
    "restarts": RestartsSchedule,
    "rewarm": RewarmSchedule,
    "piecewise": PiecewiseSchedule,
    "recorded": RecordedSchedule,
}
