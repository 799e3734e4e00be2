"""What a page shows of trainings: curves of arms at common frames. Runs in progress are read like finished ones.

A long run is drawn at a few hundred frames, which divide its visits evenly or are ends of visits.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nap_rl.report import visits
from nap_rl.report.arms import named_groups
from nap_rl.report.curves import Episodes, NoRowsError, moving_return, read_episodes, read_metrics
from nap_rl.report.layers import by_layer, is_of_layers
from nap_rl.report.sequence import Switch, plan, switches
from nap_rl.report.statistics import Floats

WINDOW = 100
"""Episodes in the mean return, as in the log's rollout/ep_rew_mean."""


@dataclass(frozen=True)
class Training:
    """One run.

    Attributes:
        settings: by dotted key, without what the runs of an arm may differ in.
        summary: summary.json, {} while the run has none.
        frames: emulator frames that it has played.
        begins: of its visits; one at frame 0 without a sequence.
        episodes: None before the first has ended.
        row_frames: [rows] of metrics.csv.
        layers: see `by_layer`.
        visits: the finished ones, None before the first has ended.
    """

    folder: Path
    seed: int
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    frames: float
    begins: tuple[Switch, ...]
    episodes: Episodes | None
    row_frames: Floats
    layers: Mapping[str, Mapping[str, Floats]]
    visits: visits.Run | None


@dataclass(frozen=True)
class TrainingArm:
    """Runs of equal settings."""

    label: str
    runs: Sequence[Training]

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.runs[0].settings

    @property
    def visited(self) -> visits.Arm | None:
        """Its runs that have finished a visit, None without one."""
        runs = [run.visits for run in self.runs if run.visits is not None]
        return visits.Arm(self.label, self.settings, runs) if runs else None

    def returns(self, frames: Floats) -> Floats:
        """[runs with an episode, P] `returns_at` of each."""
        found = [returns_at(run, frames) for run in self.runs if run.episodes is not None]
        return np.stack(found) if found else np.full((0, frames.size), np.nan)

    def layer(self, name: str, layer: str, frames: Floats) -> Floats:
        """[P] mean over the runs that have a row there, NaN without one."""
        found = [run.layers[name][layer] for run in self.runs if layer in run.layers.get(name, {})]
        if not found:
            return np.full(frames.size, np.nan)
        rows = [run.row_frames for run in self.runs if layer in run.layers.get(name, {})]
        return known_mean(np.stack([mean_within(*each, frames) for each in zip(rows, found, strict=True)]))


def find(folders: Iterable[Path]) -> list[Path]:
    """The folders of trainings at and below `folders`, each once: those with a metrics.csv.

    Raises FileNotFoundError if there is none.
    """
    places = {place: None for folder in folders for place in _with_metrics(Path(folder))}
    if not places:
        raise FileNotFoundError(
            f"There is no metrics.csv in or below {', '.join(map(str, folders))}: name runs' folders."
        )
    return list(places)


def read(folder: Path, seed: int, settings: Mapping[str, Any]) -> Training:
    """One run.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or nothing is logged yet.
    """
    clocks = ("frames", "task/index")
    columns = read_metrics(folder, only=lambda name: name in clocks or is_of_layers(name))
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    try:
        episodes = read_episodes(folder)
    except NoRowsError:
        episodes = None
    played = [float(columns["frames"][-1]), float(summary.get("frames") or 0)]
    finished = None
    if summary.get("visits"):
        with contextlib.suppress(ValueError):  # it has not finished a visit
            finished = visits.read(folder, seed, settings, columns)
    return Training(
        folder=folder,
        seed=seed,
        settings=settings,
        summary=summary,
        frames=max([*played, *(() if episodes is None else episodes.frames[-1:])]),
        begins=_begins(folder, summary, columns),
        episodes=episodes,
        row_frames=columns["frames"],
        layers=by_layer(columns, folder),
        visits=finished,
    )


def arms(runs: Sequence[Training], labels: Sequence[str] | None = None) -> tuple[list[TrainingArm], list[Training]]:
    """(arms, runs left out). Of runs with the same settings and seed, the one that has come farthest counts.

    Raises ValueError for another number of labels than arms.
    """
    found: list[TrainingArm] = []
    left_out: list[Training] = []
    for name, members in named_groups([run.settings for run in runs], labels):
        by_seed: dict[int, Training] = {}
        for run in sorted((runs[i] for i in members), key=lambda run: run.frames):
            left_out += [by_seed[run.seed]] if run.seed in by_seed else []
            by_seed[run.seed] = run
        found.append(TrainingArm(name, [by_seed[seed] for seed in sorted(by_seed)]))
    return found, left_out


def longest(runs: Iterable[Training]) -> Training:
    """The run that has played most."""
    return max(runs, key=lambda run: run.frames)


def grid(run: Training, points: int) -> Floats:
    """[P] frames at which curves are drawn, P about `points`: they divide visits evenly, or are ends of visits."""
    begins = np.array([switch.frame for switch in run.begins])
    ends = np.append(begins[1:], run.frames)
    if 2 * ends.size > points:
        together = -(-ends.size // points)
        return np.append(ends[together - 1 : -1 : together], ends[-1])
    each = points // ends.size
    return np.concatenate([np.linspace(begin, end, each + 1)[1:] for begin, end in zip(begins, ends, strict=True)])


def returns_at(run: Training, frames: Floats) -> Floats:
    """[P] mean return of the last `WINDOW` episodes of the visit that `frames` are in.

    NaN before the visit's first episode has ended, and at frames of which the run has not come past the one before.
    """
    assert run.episodes is not None
    ended = run.episodes.frames
    last = np.searchsorted(ended, frames, side="right") - 1
    means = moving_return(run.episodes, WINDOW, np.maximum(last, 0))
    begins = np.array([switch.frame for switch in run.begins])
    begin = begins[np.maximum(np.searchsorted(begins, frames, side="left") - 1, 0)]  # a visit is (begin, end]
    known = (last >= 0) & (_before(frames) < run.frames)
    known &= (ended[last] > begin) | (begin == 0)
    return np.where(known, means, np.nan)


def mean_within(rows: Floats, values: Floats, frames: Floats) -> Floats:
    """[P] mean of the values whose rows lie in (frames[i - 1], frames[i]], NaN without one."""
    at = np.searchsorted(frames, rows, side="left")
    known = np.isfinite(values) & (at < frames.size)
    sums = np.bincount(at[known], weights=values[known], minlength=frames.size)
    with np.errstate(invalid="ignore"):
        means: Floats = sums / np.bincount(at[known], minlength=frames.size)
    return means


def known_mean(values: Floats) -> Floats:
    """[runs, P] -> [P] mean over the runs that have a number."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        means: Floats = np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)
    return means


def _before(frames: Floats) -> Floats:
    return np.concatenate([[0.0], frames[:-1]])


def _begins(folder: Path, summary: Mapping[str, Any], columns: Mapping[str, Floats]) -> tuple[Switch, ...]:
    visited = summary.get("visits")
    if visited:
        ends = np.cumsum([visit["frames"] for visit in visited])
        names = [visit.get("task", visit.get("game")) for visit in visited]
        return tuple(Switch(float(begin), name) for begin, name in zip([0, *ends], names, strict=False))
    planned = plan(folder)
    first = planned[:1] or [Switch(0.0, None)]
    return (*first, *switches(dict(columns), planned))


def _with_metrics(folder: Path) -> Iterator[Path]:
    for place, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if name not in visits.NO_RUNS_BELOW)
        if "metrics.csv" in names:
            yield Path(place)
