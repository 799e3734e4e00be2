"""Draws a folder of finished studies: figure.png, figure.csv (its numbers) and a table in Markdown.

A curve has a row and a column in a grid of panels, and a series. Curves that differ only in their seed become one
line: their mean, with its 95 % bootstrap interval.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nap_rl.files import write_atomic
from nap_rl.report.statistics import mean_interval
from nap_rl.studies import scores
from nap_rl.studies.config import STEPS, SUMMARY, TASKS
from nap_rl.studies.stationary_config import EVALUATIONS

Floats = NDArray[np.float64]
RESAMPLES = 2_000  # of each of some hundred points of a curve
POINTS = 60  # of a drawn curve, each the mean over a window; figure.csv has every task
LABELS = {
    "online_accuracy": "online accuracy",
    "final_loss": "loss at end of task",
    "jacobian_norm": "Jacobian norm",
    "parameter_norm": "parameter norm",
    "dead_fraction": "dead ReLU units",
    "angle": "angle to un-projected (degrees)",
    "held_out/accuracy": "held-out accuracy",
    "held_out/loss": "held-out loss",
}


@dataclass(frozen=True)
class Study:
    """A finished study: its config, its summary, and the rows of tasks.csv, steps.csv and evaluations.csv."""

    config: dict[str, Any]
    summary: dict[str, Any]
    tasks: list[dict[str, str]]
    steps: list[dict[str, str]]
    evaluations: list[dict[str, str]]


@dataclass(frozen=True)
class Curve:
    quantity: str  # on the vertical axis; `quantity` and `network` make a row of panels
    network: str
    column: str
    series: str
    x_label: str
    x: Floats
    y: Floats


def report(folder: Path) -> str:
    """Draws the studies in `folder`, writes figure.png and figure.csv there, and returns the table.

    `folder` is a sweep's or one study's.

    Raises:
        FileNotFoundError: the folder holds no finished study.
        ValueError: the studies are of several kinds, or a folder is no study's.
    """
    studies = read_all([folder])
    if studies[0].config["study"] not in KINDS:
        write_atomic(folder / "arms.csv", scores.csv(score_rows(studies)))
    panels, table = drawn(studies)
    _write_csv(folder / "figure.csv", panels)
    picture = io.BytesIO()
    draw(panels).savefig(picture, format="png", dpi=110)
    write_atomic(folder / "figure.png", picture.getvalue())
    return table


def read_all(folders: Iterable[Path]) -> list[Study]:
    """The finished studies at and below `folders`; of scored kinds, the summary names the "arm".

    Raises:
        FileNotFoundError: there is none.
        ValueError: they are of several kinds, or one is no study's.
    """
    places = list(folders)
    studies = [_read(path.parent) for folder in places for path in sorted(folder.rglob(SUMMARY))]
    where = ", ".join(map(str, places))
    if not studies:
        raise FileNotFoundError(f"{where} holds no finished study (no {SUMMARY} in it).")
    kinds = {study.config["study"] for study in studies}
    if len(kinds) > 1:
        raise ValueError(f"{where} holds studies of several kinds: {', '.join(sorted(kinds))}; report each alone.")
    if kinds <= set(KINDS):
        return studies
    arms = scores.name_arms([study.config for study in studies])
    return [replace(each, summary={**each.summary, "arm": arm}) for each, arm in zip(studies, arms, strict=True)]


def drawn(studies: Sequence[Study]) -> tuple[Panels, str]:
    """What is drawn of studies of one kind, and their table in Markdown."""
    kind = studies[0].config["study"]
    if kind == "random_labels" and len({method(s.config) for s in studies}) > 1:
        kind = "methods"
    curves, table = KINDS.get(kind, (evaluations, score_table))
    return collect((study.config["seed"], curve) for study in studies for curve in curves(study)), table(studies)


Row = tuple[str, str]
Panels = dict[tuple[Row, str], dict[str, tuple[Curve, Floats]]]


def collect(curves: Iterator[tuple[int, Curve]]) -> Panels:
    """Groups (seed, curve) by panel and series: panels[row, column][series] = (one curve, values [runs, points]).

    Raises:
        ValueError: two runs of a series have the same seed, so they differ in something that no label shows; or runs
            of a series differ in length.
    """
    grouped: dict[tuple[Row, str], dict[str, dict[int, Curve]]] = defaultdict(lambda: defaultdict(dict))
    for seed, curve in curves:
        runs = grouped[(curve.quantity, curve.network), curve.column][curve.series]
        if seed in runs:
            raise ValueError(
                f"Two studies are both {curve.series!r}, {curve.column!r} and seed {seed}, and differ in what "
                "the figure does not show: report them from folders of their own."
            )
        runs[seed] = curve
    panels: Panels = {}
    for place, series in grouped.items():
        panels[place] = {}
        for name, runs in series.items():
            lengths = sorted({len(run.y) for run in runs.values()})
            if len(lengths) > 1:
                raise ValueError(f"The studies {name!r} have {lengths[0]} and {lengths[-1]} points.")
            panels[place][name] = (next(iter(runs.values())), np.stack([run.y for run in runs.values()]))
    return panels


# The curves and the table of each kind of study.


def variant(config: dict[str, Any]) -> str:
    """Returns the network in words, such as "NaP, layer norm, scale and offset free"."""
    if config["norm"] == "none":
        return "no normalisation"
    scale = "" if config["affine"] == "omit" else f", scale and offset {config['affine']}"
    if config["affine"] == "regularize":
        scale += f" {config['regularize_coefficient']:g}"
    if config["affine_rate"] != 1:
        scale += f" at {config['affine_rate']:g} of the rate"
    return ("NaP" if config["nap"] else "un-projected") + f", {config['norm']} norm{scale}"


def method(config: dict[str, Any]) -> str:
    """Returns the method and its options in words, such as "redo, every=30"."""
    return ", ".join([config["method"], *(f"{key}={value}" for key, value in config["options"].items())])


def _rate(config: dict[str, Any]) -> str:
    return f"learning rate {config['learning_rate']:g}"


def _column(rows: list[dict[str, str]], name: str) -> Floats:
    return np.array([float(row[name]) for row in rows])


def random_labels(study: Study) -> Iterator[Curve]:
    """Figure 1. Columns: learning rates. Rows: accuracy, loss, Jacobian norm, parameter norm."""
    for name in ("online_accuracy", "final_loss", "jacobian_norm", "parameter_norm"):
        y = _column(study.tasks, name)
        x = _column(study.tasks, "task")
        yield Curve(name, "", _rate(study.config), variant(study.config), "task", x, y)


def methods(study: Study) -> Iterator[Curve]:
    """Figure 5. Columns: learning rates. Rows: with NaP, without. Lines: methods."""
    y = _column(study.tasks, "online_accuracy")
    x = _column(study.tasks, "task")
    network = variant(study.config)
    yield Curve("online_accuracy", network, _rate(study.config), method(study.config), "task", x, y)


def dead_units(study: Study) -> Iterator[Curve]:
    """Figure 2. Columns: normalisations. Lines: optimisers."""
    y = _column(study.steps, "dead_fraction")
    x = _column(study.steps, "update")
    series = f"{study.config['optimizer']}, rate {study.config['learning_rate']:g}"
    yield Curve("dead_fraction", "", variant(study.config), series, "update", x, y)


def schedule_replay(study: Study) -> Iterator[Curve]:
    """Figure 3. Columns: learning rates. Rows: accuracy, angle. Lines: networks."""
    for network in dict.fromkeys(row["network"] for row in study.tasks):
        rows = [row for row in study.tasks if row["network"] == network]
        for name in ("online_accuracy", "angle"):
            y, x = _column(rows, name), _column(rows, "task")
            yield Curve(name, "", _rate(study.config), network, "task", x, y)


def _grouped(studies: Sequence[Study], key: Callable[[Study], tuple[str, ...]]) -> dict[tuple[str, ...], list[Study]]:
    groups: dict[tuple[str, ...], list[Study]] = defaultdict(list)
    for study in studies:
        groups[key(study)].append(study)
    return dict(sorted(groups.items()))


def _mean(studies: Sequence[Study], name: str) -> float:
    return float(np.mean([study.summary[name] for study in studies]))


def stream_table(studies: Sequence[Study]) -> str:
    """Returns early (tasks 5-15 %) and late (last 10 %) accuracy, late loss and Jacobian norm, and final norms."""
    lines = [
        "| method | network | rate | seeds | tasks 5-15 % | last 10 % | change | loss, last 10 % | Jacobian norm | "
        "norm at end | dead at end | offset at end |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = _grouped(studies, lambda s: (method(s.config), variant(s.config), f"{s.config['learning_rate']:g}"))
    for (name, network, rate), runs in groups.items():
        early, late = _mean(runs, "early_accuracy"), _mean(runs, "late_accuracy")
        loss, jacobian = _mean(runs, "late_loss"), _mean(runs, "late_jacobian_norm")
        norm, dead, offset = (_mean(runs, name) for name in ("parameter_norm", "dead_fraction", "offset"))
        lines.append(
            f"| {name} | {network} | {rate} | {len(runs)} | {early:.3f} | {late:.3f} | {late - early:+.3f} "
            f"| {loss:.2f} | {jacobian:.3g} | {norm:.1f} | {dead:.2f} | {offset:.2f} |"
        )
    return "\n".join(lines)


def dead_table(studies: Sequence[Study]) -> str:
    """Returns the share of dead units: the highest, the mean over the last half, the last."""
    lines = [
        "| network | optimiser | rate | seeds | highest | mean of last half | last |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = _grouped(studies, lambda s: (variant(s.config), s.config["optimizer"], f"{s.config['learning_rate']:g}"))
    for (network, optimizer, rate), runs in groups.items():
        dead = np.stack([_column(run.steps, "dead_fraction") for run in runs])
        highest, half, last = dead.max(1).mean(), dead[:, dead.shape[1] // 2 :].mean(), dead[:, -1].mean()
        lines.append(f"| {network} | {optimizer} | {rate} | {len(runs)} | {highest:.3f} | {half:.3f} | {last:.3f} |")
    return "\n".join(lines)


def replay_table(studies: Sequence[Study]) -> str:
    """Returns accuracy early and late, its mean distance to the un-projected network's, and the final angle."""
    lines = [
        "| rate | network | seeds | tasks 5-15 % | last 10 % | mean abs. difference | angle at end |",
        "|---|---|---|---|---|---|---|",
    ]
    for (rate,), runs in _grouped(studies, lambda s: (f"{s.config['learning_rate']:g}",)).items():
        for network in runs[0].summary["networks"]:
            ends = [run.summary["networks"][network] for run in runs]
            early, late, angle = (
                np.mean([end[name] for end in ends]) for name in ("early_accuracy", "late_accuracy", "angle")
            )
            distance = np.mean([np.abs(_online(run, network) - _online(run, "unprojected")).mean() for run in runs])
            numbers = f"{early:.3f} | {late:.3f} | {distance:.4f} | {angle:.3g}"
            lines.append(f"| {rate} | {network} | {len(runs)} | {numbers} |")
    return "\n".join(lines)


def evaluations(study: Study) -> Iterator[Curve]:
    """Of a stationary study. Columns: learning rates. Rows: scores. Lines: arms."""
    x = _column(study.evaluations, "update")
    for name in study.summary["scores"]:
        y = _column(study.evaluations, name)
        yield Curve(name, "", _rate(study.config), study.summary["arm"], "update", x, y)


def score_rows(studies: Sequence[Study]) -> list[scores.Row]:
    """Returns the rows of arms.csv."""
    arms, found = ([study.summary[key] for study in studies] for key in ("arm", "scores"))
    return scores.rows(arms, [study.config for study in studies], found)


def score_table(studies: Sequence[Study]) -> str:
    """Returns each arm's scores at the end, by learning rate; a star marks its best rate."""
    return scores.markdown(score_rows(studies))


def _online(study: Study, network: str) -> Floats:
    return _column([row for row in study.tasks if row["network"] == network], "online_accuracy")


KINDS: dict[str, tuple[Callable[[Study], Iterator[Curve]], Callable[[Sequence[Study]], str]]] = {
    "random_labels": (random_labels, stream_table),
    "methods": (methods, stream_table),
    "dead_units": (dead_units, dead_table),
    "schedule_replay": (schedule_replay, replay_table),
}


# Files and pictures.


def _read(folder: Path) -> Study:
    summary = json.loads((folder / SUMMARY).read_text())
    if "config" not in summary:
        raise ValueError(f"{folder} is no study: its {SUMMARY} has no configuration.")
    config = summary.pop("config")
    tasks, steps, evaluations = (_rows(folder / name) for name in (TASKS, STEPS, EVALUATIONS))
    return Study(config, summary, tasks, steps, evaluations)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def _write_csv(path: Path, panels: Panels) -> None:
    table = io.StringIO(newline="")
    out = csv.writer(table)
    out.writerow(["quantity", "network", "column", "series", "runs", "x", "mean", "low", "high"])
    for (row, column), series in panels.items():
        for name, (curve, values) in series.items():
            low, high = mean_interval(values, resamples=RESAMPLES)
            for point in zip(curve.x, values.mean(0), low, high, strict=True):
                out.writerow([*row, column, name, len(values), *(f"{number:.6g}" for number in point)])
    write_atomic(path, table.getvalue())


def draw(panels: Panels) -> Figure:
    """Draws a line and its interval for each series; a series has the same colour in every panel."""
    rows = list(dict.fromkeys(row for row, _ in panels))
    columns = sorted({column for _, column in panels}, key=column_order)
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    figure = Figure(figsize=(3.6 * len(columns) + 0.6, 2.6 * len(rows) + 0.7), layout="constrained")
    share: Literal["all", "row"] = "all" if len({quantity for quantity, _ in rows}) == 1 else "row"
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=share)
    for (row, column), series in panels.items():
        axes = grid[rows.index(row), columns.index(column)]
        for name, (curve, values) in series.items():
            _line(axes, curve, values, f"C{names.index(name)}", name)
            if column == columns[0]:
                axes.set_ylabel("\n".join(filter(None, (LABELS.get(curve.quantity, curve.quantity), curve.network))))
            if row == rows[-1]:
                axes.set_xlabel(curve.x_label)
        if row == rows[0]:
            axes.set_title(column, fontsize="medium")
        if row[0] in ("jacobian_norm", "parameter_norm"):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    handles = {line.get_label(): line for axes in grid.flat for line in axes.get_lines()}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(len(names), 4),
        fontsize="small",
    )
    return figure


def _line(axes: Axes, curve: Curve, values: Floats, colour: str, name: str) -> None:
    x, runs = smoothed(curve.x, values)
    axes.plot(x, runs.mean(0), color=colour, label=name, linewidth=1.2)
    axes.fill_between(x, *interval(runs), color=colour, alpha=0.2, linewidth=0)


def smoothed(x: Floats, values: Floats) -> tuple[Floats, Floats]:
    """([points], [runs, points]) of [tasks] and [runs, tasks]: means over windows, about `POINTS` of them."""
    window = max(values.shape[1] // POINTS, 1)
    points = values.shape[1] // window
    means = values[:, : points * window].reshape(len(values), points, window).mean(2)
    return x[: points * window].reshape(points, window).mean(1), means


def interval(runs: Floats) -> tuple[Floats, Floats]:
    """Low and high end [points] of the interval around the mean of [runs, points]."""
    return mean_interval(runs, resamples=RESAMPLES)


def column_order(text: str) -> tuple[float, str]:
    """The sort key of a column: the number that its title ends with, then the title."""
    try:
        return float(text.rsplit(" ", 1)[-1]), text
    except ValueError:
        return 0.0, text
