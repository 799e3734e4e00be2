"""From `schedule=` to the learning rate of each update. Files of rates are checked, kept in the run's folder, and read.

    schedule=piecewise    a CSV with the columns `progress` or `frame`, and `rate` or `factor` (of schedule.start)
    schedule=recorded     the metrics.csv of another run, or its folder

A recorded run's effective rate of layer l is e_l = eta rho_l / ||W_l|| (see `nap_rl.nap.LayerMonitor`), eta its
learning rate. With t counted from its first update, r_l(t) = e_l(t) / e_l(0) and k = 2 for SGD, 1 for other optimisers
(the same in both runs), a new run's rates are

    scope=global    start (sum_l rho_l^2 / sum_l rho_l^2 r_l^(-2/k))^(k/2), for all weights
    scope=layer     start r_l for the weights of layer l, and start eta(t) / eta(0) for all others

over all layers l but those that give the output. The global rate is eta(t) / eta(0) (||rho|| / ||W||)^k, with norms
over these layers, as in the study of schedule replay.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nap_rl.conf import environments
from nap_rl.conf.env_schema import AtSwitch, SequenceConfig, SequentialConfig
from nap_rl.conf.environments import Observations
from nap_rl.conf.optimizer_schema import power
from nap_rl.conf.schedule_schema import (
    CosineSchedule,
    LinearSchedule,
    PiecewiseSchedule,
    RecordedSchedule,
    RestartsSchedule,
    RewarmSchedule,
    Scope,
    WarmedSchedule,
)
from nap_rl.conf.schema import Config
from nap_rl.files import write_atomic
from nap_rl.report.curves import read_rows
from nap_rl.schedules import Constant, Cosine, Curve, Linear, Restarts, Rewarming, Schedule, Warmup

KEPT = "schedule.csv"
"""The rates of a file, in the run's folder: a run that goes on needs no other file."""
RATE, EFFECTIVE, NORM = "train/learning_rate", "nap/effective_lr/", "nap/param_norm/"
CYCLES = 10  # of re-warming in a run, where none stalls for longer

Floats = NDArray[np.float64]
Table = dict[str, Floats]


class LearningRates(NamedTuple):
    """What a trainer needs to know of the learning rate; see `TrainerConfig`."""

    schedule: Schedule
    layer_factors: Callable[[float], Mapping[str, float]] | None = None
    rewarming: Rewarming | None = None


class Span(NamedTuple):
    """Frames of the run, or of a visit, between which the schedule runs."""

    begin: int
    end: int

    @property
    def frames(self) -> int:
        return max(self.end - self.begin, 1)


def span_of(config: Config, run_frames: int) -> Span:
    """Of the whole run of `run_frames`, or of the shortest visit where the schedule restarts."""
    schedule, env = config.schedule, config.env
    filling = config.agent.min_replay_steps * environments.frame_skip(env)
    if isinstance(env, (SequentialConfig, SequenceConfig)) and env.on_switch.schedule == "restart":
        visit = environments.visit_frames(env)
        assert visit is not None
        return Span(filling if env.on_switch.replay is AtSwitch.reset else 0, visit)
    return Span(filling, getattr(schedule, "over_frames", None) or run_frames)


def build(config: Config, run_frames: int, folder: Path | None = None) -> LearningRates:
    """The learning rate of a run.

    Args:
        run_frames: frames over which a schedule without a length of its own runs.
        folder: of the run, where `keep` put the rates of a file; None reads the file itself.
    """
    schedule, span = config.schedule, span_of(config, run_frames)
    if isinstance(schedule, LinearSchedule):
        return LearningRates(Linear(schedule.start, schedule.end))
    if isinstance(schedule, CosineSchedule):
        return LearningRates(_warmed(schedule, Cosine(schedule.start, schedule.end), span.end))
    if isinstance(schedule, RestartsSchedule):
        cosines = Restarts(schedule.start, schedule.end, schedule.cycles, schedule.growth)
        return LearningRates(_warmed(schedule, cosines, span.end))
    if isinstance(schedule, RewarmSchedule):
        rewarming = rewarming_of(schedule, span)
        cosine = _warmed(schedule, Cosine(schedule.start, schedule.end), rewarming.cycle_frames)
        return LearningRates(cosine, rewarming=rewarming)
    if isinstance(schedule, PiecewiseSchedule):
        table = read_piecewise(schedule.file if folder is None else folder / KEPT)
        curve = piecewise(table, schedule.start, span)
        return LearningRates(_warmed(schedule, curve, span.frames, in_place=True))
    if isinstance(schedule, RecordedSchedule):
        table = read_recorded(schedule.file if folder is None else folder / KEPT)
        return recorded(table, schedule, span, power(config.optimizer))
    return LearningRates(Constant(schedule.start))


def _warmed(schedule: WarmedSchedule, curve: Schedule, frames: int, *, in_place: bool = False) -> Schedule:
    share = schedule.warmup_frames / frames
    return Warmup(curve, schedule.warmup_start, share, in_place) if share > 0 else curve


def rewarming_of(schedule: RewarmSchedule, span: Span) -> Rewarming:
    """A cycle without a length takes a tenth of the span; patience without one, half a cycle."""
    cycle = schedule.cycle_frames or max(span.frames // CYCLES, 1)
    return Rewarming(cycle, schedule.patience_frames or max(cycle // 2, 1), schedule.tolerance)


def piecewise(table: Table, start: float, span: Span) -> Curve:
    """The rates of a table over the span."""
    positions = table["progress"] if "progress" in table else (table["frame"] - span.begin) / span.frames
    return Curve(positions, table["rate"] if "rate" in table else start * table["factor"])


def recorded(table: Table, schedule: RecordedSchedule, span: Span, k: int) -> LearningRates:
    """The rates of a recorded run, from its first row on; k: see above."""
    positions = (table["frames"] - table["frames"][0]) / span.frames
    rate = table[RATE] / table[RATE][0]
    layers = [name for name in layers_of(table) if not gives_output(name)]
    relative = np.stack([table[EFFECTIVE + name] / table[EFFECTIVE + name][0] for name in layers])  # [layers, rows]
    if schedule.scope is Scope.layer:
        base = Curve(positions, schedule.start * rate)
        factors = np.divide(relative, rate, out=np.ones_like(relative), where=rate > 0)
        curves = {name: Curve(positions, row) for name, row in zip(layers, factors, strict=True)}
        return LearningRates(
            _warmed(schedule, base, span.frames, in_place=True),
            lambda progress: {name: curve(progress) for name, curve in curves.items()},
        )
    squares = np.array([table[NORM + name][0] ** 2 for name in layers])
    with np.errstate(divide="ignore"):  # a rate of 0 is one
        whole = (squares.sum() / (squares @ relative ** (-2 / k))) ** (k / 2)
    return LearningRates(_warmed(schedule, Curve(positions, schedule.start * whole), span.frames, in_place=True))


def gives_output(layer: str) -> bool:
    """Whether a layer of a `QNetwork` gives its output, which no norm follows."""
    return layer.startswith("streams.") and layer.endswith(".output")


def layers_of(table: Table) -> list[str]:
    """The layers of which a table has effective rates."""
    return [name.removeprefix(EFFECTIVE) for name in table if name.startswith(EFFECTIVE)]


def check_warmup(config: Config) -> None:
    """Raises ValueError for a warm-up as long as the schedule, or longer."""
    schedule = config.schedule
    if not isinstance(schedule, WarmedSchedule):
        return
    assert config.frames is not None
    span = span_of(config, config.frames)
    in_place = isinstance(schedule, (PiecewiseSchedule, RecordedSchedule))
    frames = span.frames if in_place else span.end
    if isinstance(schedule, RewarmSchedule):
        frames = rewarming_of(schedule, span).cycle_frames
    if schedule.warmup_frames >= frames:
        raise ValueError(
            f"schedule.warmup_frames={schedule.warmup_frames}, expected less than the schedule's own length of {frames}"
        )


# Files


def check(config: Config, observations: Observations, num_actions: int) -> None:
    """Raises ValueError or OSError, one sentence, unless the run's file of rates fits the run."""
    schedule = config.schedule
    if isinstance(schedule, PiecewiseSchedule):
        read_piecewise(schedule.file)
    if not isinstance(schedule, RecordedSchedule):
        return
    if not (config.agent.nap and config.nap.normalize):
        raise ValueError(
            "schedule=recorded is the rate of layers in front of a normalisation: add agent.nap=true, and not "
            "nap=project_only"
        )
    table = read_recorded(schedule.file)
    _check_length(table["frames"], config, schedule)
    from nap_rl.conf.networks import build_network
    from nap_rl.nap import weight_groups

    groups = weight_groups(build_network(config, num_actions, observations))
    ours = {name for name, tensors in groups.items() if tensors[0].requires_grad}
    if different := sorted(ours ^ set(layers_of(table))):
        side = "this run" if different[0] in ours else "the file"
        raise ValueError(
            f"schedule.file={schedule.file} is of another network: layer {different[0]} is in {side} alone, expected a "
            "run of the same agent and nap.normalize"
        )


def _check_length(frames: Floats, config: Config, schedule: RecordedSchedule) -> None:
    assert config.frames is not None
    span = span_of(config, config.frames)
    step = frames[-1] - frames[-2]  # a run's end comes up to a row's updates after its last row
    if frames[-1] - frames[0] + step < span.frames:
        raise ValueError(
            f"schedule.file={schedule.file} records {int(frames[-1] - frames[0]):,} frames of learning and this run "
            f"has {span.frames:,}: record a longer run, or play fewer frames"
        )


def keep(config: Config, folder: Path) -> None:
    """Put the rates of the run's file into its folder.

    Raises:
        ValueError, OSError: the file is not what it was, or the folder cannot be written.
    """
    schedule = config.schedule
    if isinstance(schedule, PiecewiseSchedule):
        table = read_piecewise(schedule.file)
    elif isinstance(schedule, RecordedSchedule):
        table = read_recorded(schedule.file)
    else:
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))  # repr: to the last bit
    write_atomic(folder / KEPT, text.getvalue())


def read_piecewise(file: str | Path) -> Table:
    """Positions and rates of a file, float64 [points] each.

    Raises:
        ValueError, OSError: one sentence.
    """
    table = _read(file, lambda name: True)
    position, value = (
        [name for name in names if name in table] for names in (("progress", "frame"), ("rate", "factor"))
    )
    if len(position) != 1 or len(value) != 1 or len(table) != 2:
        raise ValueError(
            f"schedule.file={file} has the columns {', '.join(table)}, expected progress or frame, and rate or factor"
        )
    _check_rising(table[position[0]], position[0], file)
    for name in table:
        high = 1.0 if name in ("progress", "rate") else np.inf
        outside = [value for value in table[name] if not 0 <= value <= high]
        if outside:
            expected = "numbers in [0, 1]" if high == 1.0 else "numbers of 0 or more"
            raise ValueError(f"schedule.file={file} has {name}={outside[0]:g}, expected {expected}")
    return table


def read_recorded(file: str | Path) -> Table:
    """Frames, learning rate, and each layer's effective rate and norm: float64 [rows] each.

    Raises:
        ValueError, OSError: one sentence.
    """
    path = Path(file)
    path = path / "metrics.csv" if path.is_dir() else path
    table = _read(path, lambda name: name in ("frames", RATE) or name.startswith((EFFECTIVE, NORM)))
    layers = layers_of(table)
    for name in ("frames", RATE, *(NORM + layer for layer in layers)):
        if name not in table:
            raise ValueError(f"schedule.file={file} has no column {name}, expected the metrics.csv of a run")
    if not any(not gives_output(layer) for layer in layers):
        raise ValueError(f"schedule.file={file} has no column {EFFECTIVE}<layer>, expected the metrics.csv of a run")
    if len(table["frames"]) < 2:
        raise ValueError(f"schedule.file={file} has one row, expected the metrics.csv of a run with two or more")
    _check_rising(table["frames"], "frames", file)
    for name, column in table.items():
        if name != "frames" and (column.min() < 0 or column[0] == 0):
            raise ValueError(
                f"schedule.file={file} has {name}={column.min():g}, expected a first value above 0, and none below"
            )
    return table


def _read(file: str | Path, only: Callable[[str], bool]) -> Table:
    """Raises ValueError or OSError, one sentence, for a file that is no table of finite numbers."""
    try:
        names, rows = read_rows(Path(file))
        wanted = [i for i, name in enumerate(names) if only(name)]
        table = np.array([[float(row[i]) for i in wanted] for row in rows], dtype=np.float64)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"schedule.file={file} is no file, expected a CSV file or the folder of a run"
        ) from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"schedule.file={file} is no table of numbers: {error}") from None
    if not np.isfinite(table).all():
        raise ValueError(f"schedule.file={file} holds a number that is not finite")
    return dict(zip((names[i] for i in wanted), table.T, strict=True))


def _check_rising(column: Floats, name: str, file: str | Path) -> None:
    if not (np.diff(column) > 0).all():
        raise ValueError(f"schedule.file={file} has a column {name} that does not rise from row to row")
