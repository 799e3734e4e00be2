"""The arms of a sequence as tables: one row an arm, and one row an arm and visit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from nap_rl.report.layers import LAYERS
from nap_rl.report.statistics import Estimate, Floats, iqm, iqm_interval
from nap_rl.report.text import aligned, shown, to_csv
from nap_rl.report.visits import Arm, by_cycle, over_seeds, ratio_over_seeds, reference, tenth

VISIT_COLUMNS = ("arm", "visit", "task", "cycle", "seeds", "iqm", "low", "high", "ratio", *LAYERS)


class Row(NamedTuple):
    """One arm.

    Attributes:
        early, late: score of the first and the last tenth of its visits.
        ratio: `late` over the late score of `reference`, the arm of fresh networks.
        plasticity: likewise of the area under the curve, whichever score was asked for.
        cycles: score of the visits of each cycle, if there are several.
    """

    arm: str
    seeds: int
    visits: int
    early: Estimate | None
    late: Estimate | None
    ratio: Estimate | None
    plasticity: Estimate | None
    reference: str | None
    cycles: tuple[Estimate | None, ...]


def rows(arms: Sequence[Arm], score: str, chance: float = 0.0) -> list[Row]:
    """A row an arm. `score` is one of `SCORES`; `chance` is a random policy's, subtracted before a ratio."""
    return [_row(arm, reference(arm, arms), score, chance) for arm in arms]


def _row(arm: Arm, fresh: Arm | None, score: str, chance: float) -> Row:
    n = tenth(arm.visits)

    def against_fresh(name: str) -> Estimate | None:
        return (
            None
            if fresh is None
            else ratio_over_seeds(arm.scores(name)[:, -n:], _same_visits(fresh, arm, name, n), chance)
        )

    cycles = by_cycle(arm, score)
    return Row(
        arm=arm.label,
        seeds=len(arm.runs),
        visits=arm.visits,
        early=over_seeds(arm.scores(score)[:, :n]),
        late=over_seeds(arm.scores(score)[:, -n:]),
        ratio=against_fresh(score),
        plasticity=against_fresh("auc_return"),
        reference=None if fresh is None else fresh.label,
        cycles=tuple(over_seeds(np.stack(list(of.values()), axis=1)) for of in cycles.values())
        if len(cycles) > 1
        else (),
    )


def _same_visits(fresh: Arm, arm: Arm, name: str, n: int) -> Floats:
    """The fresh arm's scores in the last `n` visits of `arm`; [runs, 0] where it has not come so far."""
    return fresh.scores(name)[:, arm.visits - n : arm.visits]


def cells(row: Row) -> tuple[str, ...]:
    """The row as text."""
    estimates = (row.early, row.late, *row.cycles, row.ratio, row.plasticity)
    return (row.arm, str(row.seeds), str(row.visits), *map(shown, estimates))


def header(found: Sequence[Row]) -> tuple[str, ...]:
    """The names over `cells`."""
    cycles = (f"cycle {i + 1}" for i in range(len(found[0].cycles)))
    return ("arm", "seeds", "visits", "first tenth", "last tenth", *cycles, "late / fresh", "AUC / fresh")


def text(found: Sequence[Row]) -> str:
    """For a terminal."""
    return "\n".join(aligned([header(found), *map(cells, found)], left=1))


def markdown(found: Sequence[Row]) -> str:
    """For a page."""
    lines = [header(found), ("---",) * len(header(found)), *map(cells, found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def table_csv(found: Sequence[Row]) -> str:
    """One row an arm, every estimate in three columns."""
    names = ("early", "late", *(f"cycle_{i + 1}" for i in range(len(found[0].cycles))), "ratio", "plasticity")
    columns = (f"{name}{end}" for name in names for end in ("", "_low", "_high"))
    lines: list[list[object]] = []
    for row in found:
        estimates = (row.early, row.late, *row.cycles, row.ratio, row.plasticity)
        numbers = [number for estimate in estimates for number in (estimate or (None, None, None))]
        lines.append([row.arm, row.seeds, row.visits, *numbers, row.reference])
    return to_csv(["arm", "seeds", "visits", *columns, "reference"], lines)


def visits_csv(arms: Sequence[Arm], score: str, chance: float = 0.0) -> str:
    """One row an arm and visit: IQM and interval over seeds, ratio to the fresh arm, what `LAYERS` names."""
    return to_csv(
        VISIT_COLUMNS, (line for arm in arms for line in _visit_rows(arm, reference(arm, arms), score, chance))
    )


def _visit_rows(arm: Arm, fresh: Arm | None, score: str, chance: float) -> Iterator[list[object]]:
    middle, low, high = curve(arm.scores(score))
    against = share_of_fresh(arm, fresh, score, chance)
    layers = [of_layers(arm, name) for name in LAYERS]
    for i, task in enumerate(arm.tasks):
        yield [
            *(arm.label, i, task, arm.runs[0].cycles[i], len(arm.runs)),
            *(middle[i], low[i], high[i], against[i], *(values[i] for values in layers)),
        ]


def curve(scores: Floats) -> tuple[Floats, Floats, Floats]:
    """[runs, visits] -> IQM over runs, low and high end of its interval, [visits] each."""
    return (iqm(scores, axis=0), *iqm_interval(scores))


def neighbours(values: Floats, most: int = 100) -> tuple[Floats, Floats]:
    """[runs, V] -> means over neighbouring visits [runs, P], and where they stand [P]; P <= `most`."""
    groups = np.array_split(np.arange(values.shape[1]), min(most, values.shape[1]))
    pooled = []
    for group in groups:
        known = np.isfinite(values[:, group])
        with np.errstate(invalid="ignore"):
            pooled.append(np.where(known, values[:, group], 0.0).sum(axis=1) / known.sum(axis=1))
    return np.stack(pooled, axis=1), np.array([group.mean() for group in groups])


def share_of_fresh(arm: Arm, fresh: Arm | None, score: str, chance: float) -> Floats:
    """[visits] (IQM - chance) / (IQM of fresh networks - chance); NaN without a fresh network that is above chance."""
    shares = np.full(arm.visits, np.nan)
    if fresh is None:
        return shares
    n = min(arm.visits, fresh.visits)
    theirs = iqm(fresh.scores(score)[:, :n], axis=0) - chance
    ours = iqm(arm.scores(score)[:, :n], axis=0) - chance
    np.divide(ours, theirs, out=shares[:n], where=theirs > 0)
    return shares


def of_layers(arm: Arm, name: str) -> Floats:
    """[visits] what `LAYERS` calls `name`, mean over the runs that have a row in the visit."""
    values = np.stack([run.layers[name][: arm.visits] for run in arm.runs])
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        means: Floats = np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)
    return means
