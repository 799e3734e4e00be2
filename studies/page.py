"""report.html of studies: the curves and the table of `figures`, to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nap_rl.report import page
from nap_rl.studies import figures

LEFT_OUT = ("seed", "jobs")
TEXT = (
    f"Mean over seeds with its 95 % bootstrap interval; a curve has about {figures.POINTS} points, means over windows. "
    "study.py report writes every point to figure.csv."
)
OF_SCORES = (
    "Scores at the end: the mean over seeds with its 95 % bootstrap interval. A star marks an arm's best rate, by its "
    "first score."
)


def write_or_say(folders: Sequence[Path], folder: Path) -> str:
    """`write` into `folder`; what stands in its way becomes a line, because the studies themselves are done."""
    if not page.is_installed():
        return f"left out: {page.MISSING}"
    try:
        return write(folders, folder / page.NAME)
    except (OSError, ValueError) as error:
        return f"left out: {page.NAME}: {error}"


def write(folders: Iterable[Path], out: Path) -> str:
    """Writes the page of the finished studies in `folders`; returns a line that says where it is.

    Raises:
        FileNotFoundError: there is no finished study.
        ValueError: the studies are of several kinds, or one is no study's.
    """
    from nap_rl.report.page import charts
    from nap_rl.report.page.document import Section, Table
    from nap_rl.report.page.document import write as write_document

    studies = figures.read_all(folders)
    panels, table = figures.drawn(studies)
    labels = list(dict.fromkeys(name for series in panels.values() for name in series))
    about_numbers = "" if studies[0].config["study"] in figures.KINDS else OF_SCORES
    sections = [Section("Numbers", about_numbers, tables=[Table(*_cells(table), left=3)])]
    for row in dict.fromkeys(row for row, _ in panels):
        drawn = []
        for column in sorted({column for of, column in panels if of == row}, key=figures.column_order):
            curves = []
            for name, (curve, values) in panels[row, column].items():
                x, runs = figures.smoothed(curve.x, values)
                low, high = figures.interval(runs)
                interval = (low, high) if len(runs) > 1 else (None, None)
                curves.append(charts.Line(labels.index(name), x, runs.mean(0), *interval))
            axis = charts.Axis(curve.x_label, [0.0], [""], float(max(line.x.max() for line in curves)))
            what = ", ".join(filter(None, (figures.LABELS.get(row[0], row[0]), column)))
            drawn.append(charts.lines(curves, labels, what, axis))
        title = figures.LABELS.get(row[0], row[0]) + (f": {row[1]}" if row[1] else "")
        sections.append(Section(title[:1].upper() + title[1:], "" if len(sections) > 1 else TEXT, drawn))
    sections.append(Section("Settings", tables=[Table(("setting", "values"), _settings(studies), left=2)], folded=True))
    kind = studies[0].config["study"].replace("_", " ")
    seeds = sorted({study.config["seed"] for study in studies})
    about = f"{len(studies)} finished, seeds {', '.join(map(str, seeds))}"
    return f"to look at: {write_document(out, f'Study: {kind}', about, labels, sections)}"


def _cells(markdown: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table in Markdown."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in markdown.splitlines()]
    return lines[0], lines[2:]


def _settings(studies: Sequence[figures.Study]) -> list[tuple[str, str]]:
    """Each setting with its values, those that differ first."""
    values: dict[str, dict[str, Any]] = {}
    for study in studies:
        for key, value in study.config.items():
            if key not in LEFT_OUT:
                values.setdefault(key, {})[str(value)] = None
    return sorted(((key, "; ".join(of)) for key, of in values.items()), key=lambda row: len(values[row[0]]) == 1)
