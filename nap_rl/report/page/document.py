"""A page as one HTML file: sections of text, charts and tables, with all scripts and styles inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from bokeh.embed import components
from bokeh.plotting import figure as Figure
from bokeh.resources import Resources
from jinja2 import Environment
from markupsafe import Markup

from nap_rl import __version__
from nap_rl.files import write_atomic
from nap_rl.report.drawing import COLOURS


class Link(NamedTuple):
    """A cell of a table that leads to a file."""

    text: str
    href: str


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first `left` columns are flush left. `arms`: each row begins with the label of an arm."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Link]]
    left: int = 1
    arms: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        text: below the title.
        choices: what can be shown in the charts, such as layers; the first is.
        folded: only its title is seen before a click.
    """

    title: str
    text: str = ""
    charts: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    choices: Sequence[str] = ()
    folded: bool = False


def write(out: Path, title: str, about: str, labels: Sequence[str], sections: Sequence[Section]) -> Path:
    """Writes the page; returns `out`.

    Args:
        about: one line below the title.
        labels: of the arms, in the order of their colours; the legend.

    Raises OSError if it cannot be written.
    """
    charts = [chart for section in sections for chart in section.charts]
    script, places = components(charts) if charts else ("", ())
    left = iter(places)
    folder = files("nap_rl.report.page")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(folder.joinpath("page.html").read_text(encoding="utf-8")).render(
        title=title,
        about=about,
        version=__version__,
        legend=[(label, COLOURS[i % len(COLOURS)], i // len(COLOURS) % 3) for i, label in enumerate(labels)],
        sections=[(section, [Markup(next(left)) for _ in section.charts]) for section in sections],
        style=Markup(folder.joinpath("page.css").read_text(encoding="utf-8")),
        page_script=Markup(folder.joinpath("page.js").read_text(encoding="utf-8")),
        library=Markup(Resources(mode="inline", components=["bokeh"]).render_js() if charts else ""),
        charts_script=Markup(script),
    )
    return write_atomic(out, html)
