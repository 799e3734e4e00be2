"""A page to look at: report.html, one file without a request to outside. It needs Bokeh, `pip install -e '.[page]'`.

`runs` reads trainings, `charts` draws, `document` writes HTML, `training` puts them together.
"""

from __future__ import annotations

from importlib.util import find_spec

NAME = "report.html"
MISSING = f"{NAME} needs Bokeh, which is not installed: pip install bokeh"


def is_installed() -> bool:
    """Whether pages can be drawn."""
    return find_spec("bokeh") is not None
