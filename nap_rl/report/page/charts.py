"""The charts of a page: one line an arm, in the arm's colour in every chart. page.js hides arms and chooses layers.

Charts over frames share their horizontal axis: who zooms one zooms all. The vertical axis follows what is in view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    CrosshairTool,
    CustomJSHover,
    CustomJSTickFormatter,
    DataRange1d,
    FixedTicker,
    HoverTool,
    LinearAxis,
    LogTicker,
    NoOverlap,
    NumeralTickFormatter,
    Range1d,
    VSpan,
)
from bokeh.models.annotations.geometry import Span
from bokeh.models.renderers.glyph_renderer import GlyphRenderer
from bokeh.plotting import figure as Figure

from nap_rl.report.drawing import COLOURS
from nap_rl.report.statistics import Floats

DASHES = ("solid", "dashed", "dotted")  # as `drawing.DASHES`
HEIGHT = 300  # pixels
TOOLS = "xpan,xbox_zoom,xwheel_zoom,reset,save"
MARKERS = ("circle", "triangle", "square", "diamond")  # of the first, second, ... visit of a task
MOST_NAMED = 24  # tasks that are named on an axis
TIP = '<div style="white-space:pre;font-size:12px">@x{tip}</div>'


@dataclass(frozen=True)
class Line:
    """A line of one arm: y [P] at x [P], NaN where there is no point.

    Attributes:
        arm: its place in the legend.
        low, high: ends of an interval around y, if there is one.
        single: [runs, P] of single runs, drawn thin.
    """

    arm: int
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None
    single: Sequence[Floats] = ()


@dataclass
class Axis:
    """A horizontal axis that charts share.

    Attributes:
        what: "emulator frames" or "visit".
        begins, names: of the tasks along it; begins[0] is the axis' own.
        end: of the last task.
        counts: whether it counts whole things from 0, each as wide as 1 and centred on its number.
    """

    what: str
    begins: Sequence[float]
    names: Sequence[str]
    end: float
    counts: bool = False
    range: Range1d = field(init=False)
    cursor: Span = field(init=False)

    def __post_init__(self) -> None:
        start = float(self.begins[0])
        self.range = Range1d(start=start, end=self.end, bounds=(start, self.end), tags=["along"])
        self.cursor = Span(dimension="height", line_dash="dotted", line_alpha=0.5, tags=["cursor"])


def lines(curves: Sequence[Line], labels: Sequence[str], what: str, axis: Axis, *, log: bool = False) -> Figure:
    """One line a curve, with its interval as a band."""
    chart, drawn = _empty(what, axis, log=log), []
    for curve in curves:
        drawn.append(_line(chart, curve, labels))
    _tips(chart, drawn, axis)
    return chart


def by_layer(
    arms: Sequence[tuple[int, Floats, Mapping[str, Floats]]],
    labels: Sequence[str],
    what: str,
    axis: Axis,
    *,
    shown: str,
    log: bool = False,
) -> Figure:
    """One line an arm (place in the legend, x [P], layer -> [P]) of the layer `shown`; page.js shows the others."""
    chart, drawn = _empty(what, axis, log=log), []
    for arm, x, layers in arms:
        known = np.any([np.isfinite(values) for values in layers.values()], axis=0)
        columns = {layer: _numbers(values[known]) for layer, values in layers.items()}
        empty = np.full(int(known.sum()), np.nan, dtype=np.float32)
        source = ColumnDataSource({**columns, "x": x[known], "y": columns.get(shown, empty)})
        renderer = chart.line("x", "y", source=source, **_look(arm), name=labels[arm])
        renderer.tags = ["arm", arm, "layer"]
        drawn.append(renderer)
    _tips(chart, drawn, axis)
    return chart


def tasks(points: Sequence[tuple[int, int, Mapping[str, float]]], labels: Sequence[str], what: str) -> Figure:
    """Points (place in the legend, cycle, task -> y) side by side at each task: hollow in the first cycle."""
    order = list(dict.fromkeys(task for _, _, by_task in points for task in by_task))
    places = sorted({arm for arm, _, _ in points})
    axis = Axis("task", [-0.5], [""], len(order) - 0.5)
    chart = _empty(what, axis)
    if len(order) <= MOST_NAMED:
        chart.xaxis.ticker = FixedTicker(ticks=list(range(len(order))))
        chart.xaxis.major_label_overrides = dict(enumerate(order))
        chart.xaxis.major_label_orientation = 0.6
    else:
        chart.xaxis.formatter = NumeralTickFormatter(format="0a")
    drawn = []
    for arm, cycle, by_task in points:
        offset = 0.6 * (places.index(arm) - (len(places) - 1) / 2) / len(places)
        source = ColumnDataSource(
            {
                "x": [order.index(task) + offset for task in by_task],
                "y": list(by_task.values()),
                "task": list(by_task),
                "visit": [cycle + 1] * len(by_task),
                "arm": [labels[arm]] * len(by_task),
            }
        )
        colour = COLOURS[arm % len(COLOURS)]
        marker = chart.scatter(
            "x",
            "y",
            source=source,
            marker=MARKERS[cycle % len(MARKERS)],
            size=9,
            line_color=colour,
            fill_color=colour,
            fill_alpha=0.0 if cycle == 0 else 1.0,
        )
        marker.tags = ["arm", arm]
        drawn.append(marker)
    tips = [("arm", "@arm"), ("task", "@task"), ("visit", "@visit"), ("score", "@y{0.[000]a}")]
    chart.add_tools(HoverTool(renderers=list[Any](drawn), tooltips=tips, visible=False))
    return chart


def mark(chart: Figure, y: float) -> Figure:
    """A horizontal line at `y`."""
    chart.add_layout(Span(location=y, dimension="width", line_dash="dotted", tags=["ink"]))
    return chart


def _empty(what: str, axis: Axis, *, log: bool = False) -> Figure:
    chart = Figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        tools=TOOLS,
        active_drag=None,
        x_range=axis.range,
        y_range=DataRange1d(only_visible=True, range_padding=0.08),
        y_axis_type="log" if log else "linear",
        window_axis="x",
        toolbar_location="above",
        x_axis_label=axis.what,
        y_axis_label=what,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        tags=["chart"],
    )
    chart.toolbar.logo = None
    chart.xgrid.visible = False
    chart.xaxis.formatter = NumeralTickFormatter(format="0.[00]a")
    chart.yaxis.formatter = CustomJSTickFormatter(code="return window.short(tick)")
    if log:
        chart.yaxis.ticker = LogTicker(mantissas=[1, 2, 5])
    if axis.counts:
        chart.xaxis.ticker = BasicTicker(min_interval=1)
    _switches(chart, axis)
    return chart


def _switches(chart: Figure, axis: Axis) -> None:
    """A line at each switch, of which page.js shows those in view if they are few; names above if all are few."""
    if len(axis.begins) < 2:
        return
    source = ColumnDataSource({"x": [float(begin) for begin in axis.begins[1:]]})
    drawn = chart.add_glyph(source, VSpan(x="x", line_dash="dashed", line_alpha=0.35, line_color="gray"))
    drawn.tags = ["switches"]
    if len(axis.begins) > MOST_NAMED or not any(axis.names):
        return
    middles = (np.array(axis.begins) + np.array([*axis.begins[1:], axis.end])) / 2
    above = LinearAxis(
        ticker=cast(Any, FixedTicker(ticks=middles.tolist())),
        major_label_overrides={float(at): name for at, name in zip(middles, axis.names, strict=True)},
        major_label_policy=NoOverlap(),
        major_tick_line_color=None,
        axis_line_color=None,
    )
    chart.add_layout(above, "above")


def _line(chart: Figure, curve: Line, labels: Sequence[str]) -> GlyphRenderer[Any]:
    """The line's renderer; band and single runs lie below it."""
    known = np.isfinite(curve.y)
    if curve.low is not None and curve.high is not None:
        known &= np.isfinite(curve.low) & np.isfinite(curve.high)
    source = ColumnDataSource({"x": curve.x[known], "y": _numbers(curve.y[known])})
    colour = COLOURS[curve.arm % len(COLOURS)]
    drawn: list[GlyphRenderer[Any]] = []
    if curve.single:
        runs = [(curve.x[np.isfinite(y)], _numbers(y[np.isfinite(y)])) for y in curve.single]
        thin = ColumnDataSource({"xs": [x for x, _ in runs], "ys": [y for _, y in runs]})
        drawn.append(chart.multi_line("xs", "ys", source=thin, line_color=colour, line_alpha=0.25, line_width=0.7))
    if curve.low is not None and curve.high is not None:
        source.add(_numbers(curve.low[known]), "low")
        source.add(_numbers(curve.high[known]), "high")
        drawn.append(chart.varea("x", "low", "high", source=source, fill_color=colour, fill_alpha=0.16))
    name = labels[curve.arm]
    if int(known.sum()) == 1:
        drawn.append(chart.scatter("x", "y", source=source, size=7, color=colour, name=name))
    else:
        drawn.append(chart.line("x", "y", source=source, **_look(curve.arm), name=name))
    for renderer in drawn:
        renderer.tags = ["arm", curve.arm]
    return drawn[-1]


def _tips(chart: Figure, drawn: Sequence[GlyphRenderer[Any]], axis: Axis) -> None:
    """One box for all arms in view, at the drawn point that is nearest to the pointer; none without points."""
    if not drawn:
        return
    xs = np.unique(np.concatenate([cast(ColumnDataSource, renderer.data_source).data["x"] for renderer in drawn]))
    chart.extra_y_ranges = {"tips": Range1d(start=0, end=1)}  # so that they are in view wherever the lines are
    source = ColumnDataSource({"x": xs, "y": np.full(xs.size, 0.5, dtype=np.float32)})
    nowhere = chart.line("x", "y", source=source, line_alpha=0.0, y_range_name="tips")
    cast(DataRange1d, chart.y_range).renderers = [
        renderer for renderer in chart.renderers if _has_extent(renderer, nowhere)
    ]
    args = {"lines": list(drawn), "what": axis.what, "begins": list(axis.begins), "names": list(axis.names)}
    text = CustomJSHover(args=args, code="return window.tip(value, lines, what, begins, names)")
    chart.add_tools(
        HoverTool(
            renderers=[nowhere],
            mode="vline",
            line_policy="nearest",
            point_policy="follow_mouse",
            tooltips=TIP,
            formatters={"@x": text},
            visible=False,
        ),
        CrosshairTool(overlay=axis.cursor, visible=False),
    )


def _has_extent(renderer: Any, nowhere: GlyphRenderer[Any]) -> bool:
    return renderer is not nowhere and "switches" not in renderer.tags


def _look(arm: int) -> dict[str, Any]:
    return {
        "line_color": COLOURS[arm % len(COLOURS)],
        "line_dash": DASHES[arm // len(COLOURS) % len(DASHES)],
        "line_width": 2,
    }


def _numbers(values: Floats) -> Any:
    """Half the bytes of float64 on the page."""
    return values.astype(np.float32)
