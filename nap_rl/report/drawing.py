"""What all pictures share: size, colours, and how they are written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_rl.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES = 8.0
DOTS_PER_INCH = 200
INK = "#222222"
FAINT = "#9a9a9a"
# Okabe and Ito's colours, which readers with colour-blindness tell apart, without the pale yellow.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))


def new_figure(height: float) -> Figure:
    """An empty figure, `WIDTH_INCHES` wide: twice the 800 pixels at which a page shows it."""
    from matplotlib.figure import Figure  # no pyplot: it would look for a display

    return Figure(figsize=(WIDTH_INCHES, height), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")


def style(axes: Axes, what: str, x: str = "visit") -> None:
    """Labels both axes, and takes away what no reader needs."""
    axes.set_ylabel(what, fontsize=8)
    axes.set_xlabel(x, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)


def look(i: int, marker: str = "") -> dict[str, Any]:
    """Of line number `i`."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "ls": DASHES[i // len(COLOURS) % len(DASHES)],
        "lw": 1.6,
        "marker": marker,
    }


def save(figure: Figure, out: Path) -> Path:
    """Writes the picture in the format that the suffix of `out` names, PNG without one. The same figure gives the
    same bytes."""
    picture = io.BytesIO()
    kind = Path(out).suffix.removeprefix(".").lower() or "png"
    figure.savefig(picture, format=kind, metadata={"Software": None} if kind == "png" else None)
    return write_atomic(out, picture.getvalue())
