"""Charts as data: the page's script draws them with plotly.js, which is the extra `report`, inlined whole."""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from delta.errors import ConfigError
from delta.report.markup import Html, element

__all__ = ["Canvas", "Chart", "Dot", "Series", "View", "dots", "macs_axis", "plotly_script", "scatter"]

COLOURS = ("--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7")
"""Of the style sheet: light and dark pages have their own."""
_LABEL = 24
"""Characters of a line of a label."""
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "circle")


@dataclass(frozen=True)
class Dot:
    """One measured figure.

    Attributes:
        x: across.
        y: up; in `dots` the row's label.
        hover: lines shown for it.
        low: lower end of its range, along the measured axis; none without one.
        high: upper end.
        marked: drawn large and filled, such as a point of the Pareto set.
    """

    x: float | str
    y: float | str
    hover: tuple[str, ...]
    low: float | None = None
    high: float | None = None
    marked: bool = True


@dataclass(frozen=True)
class Series:
    """Dots of one name.

    Attributes:
        name: in the legend.
        dots: in order.
        colour: index of `COLOURS`; the same index gives the same symbol.
        line: `none`, `solid`, `dash` or `dot` between the dots.
        markers: whether the dots are drawn.
    """

    name: str
    dots: tuple[Dot, ...]
    colour: int = 0
    line: str = "none"
    markers: bool = True


@dataclass(frozen=True)
class View:
    """One way to look at a chart.

    Attributes:
        label: of its button.
        data: traces.
        layout: what differs from the page's.
        heights: in pixels, on a wide and on a narrow page.
    """

    label: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    heights: tuple[int, int]


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        title: above it.
        caption: below it: what is drawn, and how to read it.
        views: at least one; several have buttons.
    """

    title: str
    caption: str
    views: tuple[View, ...]


@dataclass
class Canvas:
    """The charts of a page, in order."""

    charts: list[Chart] = field(default_factory=list)

    def add(self, chart: Chart) -> Html:
        """Take a chart in, and give the place where it is drawn."""
        index = len(self.charts)
        self.charts.append(chart)
        buttons = [
            element("button", view.label, type="button", aria_pressed="false" if position else "true")
            for position, view in enumerate(chart.views)
        ]
        return element(
            "figure",
            element("h3", chart.title),
            element("div", *buttons, class_="views", role="group", aria_label="What is drawn")
            if len(buttons) > 1
            else None,
            element(
                "div", id=f"chart-{index}", class_="plot", role="img", aria_label=f"Chart: {chart.title}"
            ),
            element("figcaption", chart.caption),
            class_="chart",
            data_chart=index,
        )

    def to_json(self) -> str:
        """What the script reads; no `<` is left, so that nothing in it can end the element that holds it."""
        specs = [
            {
                "views": [
                    {"data": view.data, "layout": view.layout, "heights": view.heights}
                    for view in chart.views
                ]
            }
            for chart in self.charts
        ]
        text = json.dumps(specs, ensure_ascii=False, allow_nan=False)
        return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def scatter(
    series: Sequence[Series],
    *,
    label: str = "",
    x: dict[str, Any],
    y: dict[str, Any],
    shapes: Sequence[dict[str, Any]] = (),
    annotations: Sequence[dict[str, Any]] = (),
    heights: tuple[int, int] = (460, 420),
) -> View:
    """Figures against figures; ranges are drawn along y."""
    layout: dict[str, Any] = {
        "xaxis": x,
        "yaxis": y,
        "shapes": list(shapes),
        "annotations": list(annotations),
    }
    return View(label, [_trace(one, upright=True) for one in series], layout, heights)


def macs_axis(budgets: Sequence[float]) -> dict[str, Any]:
    """Private MACs in millions on a log axis; its ticks are the budgets themselves.

    Args:
        budgets: in MACs; those within a few percent share a tick, so that labels do not lie on each other.
    """
    ticks: list[float] = []
    for budget in sorted(set(budgets)):
        if not ticks or budget > 1.25 * ticks[-1]:
            ticks.append(budget)
    return {
        "title": "private MACs a record (log)",
        "type": "log",
        "tickvals": [tick / 1e6 for tick in ticks],
        "ticktext": [f"{tick / 1e6:.3g} M" for tick in ticks],
        "tickangle": 0,
    }


def dots(series: Sequence[Series], *, label: str = "", x: dict[str, Any]) -> View:
    """A row a label, dots along x with their ranges: bars would have no base on a log axis."""
    rows = list(dict.fromkeys(str(dot.y) for one in series for dot in one.dots))
    lines = sum(1 + _label(row).count("<br>") for row in rows)
    height = 110 + 14 * len(rows) + 16 * lines
    y = {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": [_label(row) for row in rows][::-1],
        "range": [-0.7, len(rows) - 0.3],
        "ticklabelstandoff": 6,
    }
    layout: dict[str, Any] = {"xaxis": x, "yaxis": y, "showlegend": len(series) > 1}
    return View(label, [_trace(one, upright=False) for one in series], layout, (height, height + 20))


def _trace(series: Series, *, upright: bool) -> dict[str, Any]:
    colour = COLOURS[series.colour % len(COLOURS)]
    symbol = _SYMBOLS[series.colour % len(_SYMBOLS)]
    found = series.dots
    mode = "+".join(
        part for part, drawn in (("lines", series.line != "none"), ("markers", series.markers)) if drawn
    )
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": mode or "markers",
        "name": _plain(series.name),
        "x": [_plain(dot.x) if isinstance(dot.x, str) else dot.x for dot in found],
        "y": [_label(dot.y) if isinstance(dot.y, str) else dot.y for dot in found],
        "customdata": ["<br>".join(_plain(line) for line in dot.hover) for dot in found],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "color": colour,
            "symbol": [symbol if dot.marked else f"{symbol}-open" for dot in found],
            "size": [11 if dot.marked else 9 for dot in found],
            "line": {"width": 1.5, "color": colour},
        },
        "line": {"color": colour, "width": 1.8, "dash": series.line if series.line != "none" else "solid"},
        "cliponaxis": False,
    }
    ends = [(_end(dot, dot.high, upright, 1), _end(dot, dot.low, upright, -1)) for dot in found]
    if any(above or below for above, below in ends):
        trace["error_y" if upright else "error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": [above for above, _ in ends],
            "arrayminus": [below for _, below in ends],
            "color": colour,
            "thickness": 1.4,
            "width": 4,
        }
    return trace


def _end(dot: Dot, end: float | None, upright: bool, sign: int) -> float:
    """How far a range goes beyond its dot; 0 where there is none."""
    value = dot.y if upright else dot.x
    return 0.0 if end is None or isinstance(value, str) else max(0.0, sign * (end - value))


def _label(text: str) -> str:
    """A row's label in short lines: on a phone a long one would leave no room for the dots."""
    return "<br>".join(_plain(line) for line in textwrap.wrap(text, _LABEL)) or _plain(text)


def _plain(text: str) -> str:
    """plotly.js reads a few tags in its labels: text is to stay text."""
    return html.escape(text, quote=False)


def plotly_script() -> str:
    """The source of plotly.js.

    Raises:
        ConfigError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ConfigError(
            "the report's charts need plotly; install the extra: pip install 'delta-split[report]'"
        ) from None
    return str(get_plotlyjs())
