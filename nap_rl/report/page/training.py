"""The page of trainings: arms, returns, visits, layers, settings, films, runs; numbers as in `report.py visits`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from nap_rl.report import visits_table
from nap_rl.report.arms import group_by_settings
from nap_rl.report.layers import ALL, LAYERS, ON_A_LOG_SCALE
from nap_rl.report.page import charts
from nap_rl.report.page.charts import Axis, Line
from nap_rl.report.page.document import Link, Section, Table, write
from nap_rl.report.page.runs import WINDOW, Training, TrainingArm, grid, longest
from nap_rl.report.statistics import improvement, iqm
from nap_rl.report.text import shown
from nap_rl.report.visits import Arm, by_cycle, reference, run_means, tenth
from nap_rl.report.visits_table import curve, neighbours, share_of_fresh

POINTS = 200  # of a curve over frames
FEWEST_POINTS = 24
NUMBERS = 200_000  # of layers on a page, about 1 MB
MOST_COMPARED = 8  # arms in the table of probabilities
MOST_SINGLE = 12  # runs that are drawn one by one
WORDS = {
    "late_return": "return late in the visit",
    "mean_return": "mean return of the visit",
    "auc_return": "area under the visit's curve",
}
Place = tuple[int, Arm]
"""An arm's place in the legend, and its finished visits."""


def write_page(
    out: Path, arms: Sequence[TrainingArm], title: str, *, score: str, chance: float = 0.0, left_out: Sequence[str] = ()
) -> Path:
    """Writes the page; returns `out`.

    Args:
        score: one of `visits.SCORES`.
        chance: a random policy's score, subtracted before ratios.
        left_out: a sentence for each run that is not on the page.

    Raises OSError if it cannot be written.
    """
    runs = [run for arm in arms for run in arm.runs]
    visited = [(i, found) for i, arm in enumerate(arms) if (found := arm.visited) is not None]
    labels = [arm.label for arm in arms]
    frames = _frames_axis(longest(runs))
    sections = [
        *_arms(visited, score, chance),
        _returns(arms, labels, frames),
        *_visits(visited, labels, score, chance),
        *_layers(arms, labels, frames),
        *_settings(arms),
        *_films(runs, out.parent),
        _runs(arms, left_out, out.parent),
        _machines(runs),
    ]
    seeds = sorted({run.seed for run in runs})
    about = f"{_count(len(runs), 'run')} in {_count(len(arms), 'arm')}, seeds {', '.join(map(str, seeds))}"
    return write(out, title, about, labels, sections)


RETURNS = (
    f"Mean return of the last {WINDOW} episodes of the visit, unclipped. The line is the inter-quartile mean (IQM) "
    f"over seeds, the band its 95 % bootstrap interval; up to {MOST_SINGLE} single runs are thin lines. Curves have "
    f"about {POINTS} points, where all seeds of an arm have a number; episodes.csv has every episode."
)
BY_VISIT = (
    "IQM over seeds of each visit's score, with its 95 % bootstrap interval. Sequences of more than 100 visits are "
    "drawn as means over neighbouring visits."
)
OF_LAYERS = (
    "Mean over seeds. Norms are over their first logged value. All layers: the norm of all together, the geometric "
    "mean of effective rates, the mean of rotation and dormant units. Points are means over the rows between two "
    "frames; metrics.csv has every row."
)


def _arms(visited: Sequence[Place], score: str, chance: float) -> Iterator[Section]:
    if not visited:
        return
    arms = [arm for _, arm in visited]
    found = visits_table.rows(arms, score, chance)
    text = (
        f"Each run's mean {WORDS[score]} over the first and the last tenth of its visits, then the IQM over seeds with "
        "its 95 % bootstrap interval. Ratios are to the arm of fresh networks that differs in the fewest settings."
    )
    yield Section("Arms", text, tables=[Table(visits_table.header(found), [visits_table.cells(row) for row in found])])
    if 2 <= len(arms) <= MOST_COMPARED:
        yield _improvements(arms, score)


def _improvements(arms: Sequence[Arm], score: str) -> Section:
    ends = {arm.label: _late(arm, score) for arm in arms}
    rows = []
    for label, ours in ends.items():
        cells = [
            "" if other == label or not (len(ours) and len(theirs)) else shown(improvement(ours, theirs))
            for other, theirs in ends.items()
        ]
        rows.append((label, *cells))
    text = (
        "How probable it is that a run of the arm at the left ends above one of the arm at the top: P(X > Y) + "
        "P(X = Y) / 2 over the last tenth of visits, with its 95 % bootstrap interval."
    )
    return Section("Probability of improvement", text, tables=[Table(("", *ends), rows)])


def _late(arm: Arm, score: str) -> list[float]:
    late: list[float] = run_means(arm.scores(score)[:, -tenth(arm.visits) :]).tolist()
    return late


def _frames_axis(run: Training) -> Axis:
    begins = [switch.frame for switch in run.begins]
    return Axis("emulator frames", begins, [switch.game or "" for switch in run.begins], run.frames)


def _returns(arms: Sequence[TrainingArm], labels: Sequence[str], axis: Axis) -> Section:
    frames = grid(longest([run for arm in arms for run in arm.runs]), POINTS)
    drawn_one_by_one = sum(len(arm.runs) for arm in arms) <= MOST_SINGLE
    curves = []
    for i, arm in enumerate(arms):
        returns = arm.returns(frames)
        known = np.isfinite(returns).all(axis=0)
        if len(returns) and known.any():
            several = len(returns) > 1
            middle, low, high = curve(returns[:, known]) if several else (returns[0, known], None, None)
            singles = list(returns[:, known]) if several and drawn_one_by_one else []
            curves.append(Line(i, frames[known], middle, low, high, singles))
    if not curves:
        return Section("Returns", "No episode has ended.")
    return Section("Returns", RETURNS, [charts.lines(curves, labels, f"return, mean of the last {WINDOW}", axis)])


def _visits(visited: Sequence[Place], labels: Sequence[str], score: str, chance: float) -> Iterator[Section]:
    if all(arm.visits < 2 for _, arm in visited):
        return
    arms = [arm for _, arm in visited]
    most = max(arms, key=lambda arm: arm.visits)
    axis = Axis("visit", [i - 0.5 for i in range(most.visits)], most.tasks, most.visits - 0.5, counts=True)
    scores, shares = [], []
    for i, arm in visited:
        pooled, at = neighbours(arm.scores(score))
        middle, low, high = curve(pooled)
        scores.append(Line(i, at, middle, *((low, high) if len(arm.runs) > 1 else (None, None))))
        fresh = reference(arm, arms)
        if fresh is not None:
            share, at = neighbours(share_of_fresh(arm, fresh, score, chance)[None])
            shares.append(Line(i, at, share[0]))
    drawn = [charts.lines(scores, labels, WORDS[score], axis)]
    if shares:
        above = f", above {chance:g}" if chance else ""
        drawn.append(charts.mark(charts.lines(shares, labels, f"share of a fresh network's{above}", axis), 1.0))
    yield Section("Return by visit", BY_VISIT, drawn)
    if any(len(set(arm.runs[0].cycles)) > 1 for arm in arms):
        points = [
            (i, cycle, {task: float(iqm(of)) for task, of in by_task.items()})
            for i, arm in visited
            for cycle, by_task in by_cycle(arm, score).items()
        ]
        text = "Each task's first visit (hollow) and its later ones (filled); another cycle has another marker."
        yield Section("First against later visits", text, [charts.tasks(points, labels, WORDS[score])])


def _layers(arms: Sequence[TrainingArm], labels: Sequence[str], axis: Axis) -> Iterator[Section]:
    runs = [run for arm in arms for run in arm.runs]
    names = list(dict.fromkeys([ALL, *(layer for run in runs for of in run.layers.values() for layer in of)]))
    room = NUMBERS // (len(arms) * len(names) * len(LAYERS))
    frames = grid(longest(runs), min(max(room, FEWEST_POINTS), POINTS))
    drawn = []
    for name, words in LAYERS.items():
        curves = []
        for i, arm in enumerate(arms):
            by_layer = {layer: arm.layer(name, layer, frames) for layer in names if _has(arm, name, layer)}
            if by_layer:
                curves.append((i, frames, by_layer))
        if curves:
            log = name in ON_A_LOG_SCALE or (name == "norm" and _spread(of for *_, of in curves) > 20)
            what = "norm / its first" if name == "norm" else words
            drawn.append(charts.by_layer(curves, labels, what, axis, shown=ALL, log=log))
    if drawn:
        yield Section("Layers", OF_LAYERS, drawn, choices=names)


def _has(arm: TrainingArm, name: str, layer: str) -> bool:
    return any(layer in run.layers.get(name, {}) for run in arm.runs)


def _spread(curves: Iterable[Mapping[str, Any]]) -> float:
    """The largest number over the smallest, if that is above 0."""
    values = np.concatenate([of for curve_ in curves for of in curve_.values()])
    known = values[np.isfinite(values)]
    return float(known.max() / known.min()) if known.size and known.min() > 0 else 1.0


def _settings(arms: Sequence[TrainingArm]) -> Iterator[Section]:
    differing = [different for different, _ in group_by_settings([arm.settings for arm in arms])]
    keys = list(dict.fromkeys(key for each in differing for key in each))
    if len(differing) == len(arms) and keys:
        rows = [(key, *(str(each.get(key, "-")) for each in differing)) for key in keys]
        yield Section(
            "Settings that differ", tables=[Table(("setting", *(arm.label for arm in arms)), rows, left=len(arms) + 1)]
        )


def _films(runs: Sequence[Training], page: Path) -> Iterator[Section]:
    rows = []
    for run in runs:
        for path in sorted(run.folder.glob("evaluations/*/evaluation.json")):
            for result in json.loads(path.read_text(encoding="utf-8")).get("results", []):
                film = path.parent / "videos" / Path(result.get("video") or "-").name
                if film.is_file():
                    score = f"{result['mean']['value']:.2f} in {_count(result['episodes'], 'episode')}"
                    place = Link(film.name, _href(film, page))
                    rows.append((f"{run.folder.parent.name}/{run.folder.name}", result["game"], score, place))
    if rows:
        yield Section("Films", tables=[Table(("run", "game", "mean return", "film"), rows, left=4)])


def _runs(arms: Sequence[TrainingArm], left_out: Sequence[str], page: Path) -> Section:
    rows = [
        (
            arm.label,
            Link(run.folder.name, _href(run.folder, page) + "/"),
            str(run.seed),
            str(run.summary.get("status") or "running, or killed"),
            f"{run.frames:,.0f}",
            _number(run.summary.get("fps"), ",.0f"),
            _number(run.summary.get("wall_seconds"), ",.0f"),
        )
        for arm in arms
        for run in arm.runs
    ]
    header = ("arm", "folder", "seed", "status", "frames", "frames/s", "seconds")
    return Section("Runs", "; ".join(left_out), tables=[Table(header, rows, left=2)], folded=True)


def _machines(runs: Sequence[Training]) -> Section:
    """Each version, device and machine, with the number of runs that had it."""
    counts: dict[tuple[str, str], int] = {}
    for run in runs:
        told = {
            **run.summary.get("versions", {}),
            "device": run.summary.get("device"),
            **run.summary.get("machine", {}),
        }
        for name, value in told.items():
            if value is not None:
                counts[name, str(value)] = counts.get((name, str(value)), 0) + 1
    rows = [(name, value, str(n)) for (name, value), n in counts.items()]
    return Section("Machine and versions", tables=[Table(("", "", "runs"), rows, left=2)], folded=True)


def _href(path: Path, page: Path) -> str:
    return quote(os.path.relpath(path.absolute(), page.absolute()).replace(os.sep, "/"))


def _number(value: object, spec: str) -> str:
    return format(value, spec) if isinstance(value, (int, float)) else "-"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
