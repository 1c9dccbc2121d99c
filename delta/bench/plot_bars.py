"""Bars of benchmark rows: latency by threads, bytes up and down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from delta.bench.plot_style import INK, Row, figure, in_order, labels_of, needs, plain_ticks, save, tidy
from delta.models.mpc_table import byte_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_bytes", "plot_latency"]

_THREADS = ("#08306b", "#4292c6", "#9ecae1", "#deebf7", "#ffffff")
_UP, _DOWN = "#0072B2", "#E69F00"
_BASELINE = "private-only"


@dataclass(frozen=True)
class _Bar:
    """One bar: its group and series, value and range, and what is written at its end."""

    group: str
    series: str
    value: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class _Panel:
    """Bars that are compared with each other."""

    title: str
    bars: list[_Bar]

    def groups(self) -> list[str]:
        """Labels from top to bottom."""
        return list(dict.fromkeys(bar.group for bar in self.bars))


def plot_latency(rows: Sequence[Row], path: Path) -> None:
    """Milliseconds a call by method and threads, with the range of all samples, on a log axis.

    One panel for each network, batch and link, for inference and for training; a bar's end tells its median and
    its speed-up over private-only of the same panel and threads.

    Args:
        rows: of the benchmark.
        path: ends in `.png` or `.svg`.

    Raises:
        ConfigError: nothing to draw, another suffix, or matplotlib is not installed.
        InputError: the file cannot be written.
    """
    needs(rows, path, "method", "network", "phase", "batch", "threads", "link", "private_macs", "ms_median")
    panels = []
    for title, found in _panels(rows, "batch", "link").items():
        bars = [
            _Bar(
                label,
                _threads(row["threads"]),
                row["ms_median"],
                row["ms_min"],
                row["ms_max"],
                _time_text(row),
            )
            for label, row in zip(_apart(labels_of(found), found), found, strict=True)
        ]
        panels.append(_Panel(title, bars))
    series = [_threads(count) for count in sorted({row["threads"] for row in rows})]
    colours = dict(zip(series, _spread_colours(len(series)), strict=True))
    alone = f", private side on {series[0]}" if len(series) == 1 else ""
    _draw(
        panels,
        colours,
        path,
        heading=f"Time of a call: median, and range of all samples{alone}",
        axis="milliseconds (log scale)",
        legend="private side on",
    )


def plot_bytes(rows: Sequence[Row], path: Path) -> None:
    """Bytes a record up and down by method, on a log axis; one panel for each network, phase and batch.

    Args:
        rows: of the benchmark; `bytes_up` and `bytes_down` are of a call.
        path: ends in `.png` or `.svg`.

    Raises:
        ConfigError: nothing to draw, another suffix, or matplotlib is not installed.
        InputError: the file cannot be written.
    """
    needs(rows, path, "method", "network", "phase", "batch", "private_macs", "bytes_up", "bytes_down")
    panels = []
    for title, found in _panels(rows, "batch").items():
        once = dict(zip(labels_of(found), found, strict=True))  # threads and link change no byte
        bars = []
        for label, row in once.items():
            for series, name in (("up", "bytes_up"), ("down", "bytes_down")):
                size = row[name] / row["batch"]
                bars.append(_Bar(label, series, size, size, size, byte_size(size) if size else "nothing"))
        panels.append(_Panel(title, bars))
    _draw(
        panels,
        {"up": _UP, "down": _DOWN},
        path,
        heading="Bytes a record between the two sides",
        axis="bytes a record (log scale)",
        legend="",
        unit=byte_size,
    )


def _panels(rows: Sequence[Row], *settings: str) -> dict[str, list[Row]]:
    """Rows by what they may be compared in; methods in order within each, threads ascending."""
    order = {method: place for place, method in enumerate(in_order(row["method"] for row in rows))}
    ranked = sorted(rows, key=lambda row: (order[row["method"]], row["private_macs"], row.get("threads", 0)))
    ranked.sort(key=lambda row: (row["phase"] != "infer", row["network"], *(str(row[s]) for s in settings)))
    found: dict[str, list[Row]] = {}
    for row in ranked:
        title = f"{'Inference' if row['phase'] == 'infer' else 'Training step'}, {row['network']}, batch {row['batch']}"
        if "link" in settings and row["link"] != "none":
            title += f", link {row['link']}"
        found.setdefault(title, []).append(row)
    return found


def _apart(labels: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Labels that no two rows of the same threads share: `delta`, `delta (2)`."""
    seen: dict[tuple[str, int], int] = {}
    apart = []
    for label, row in zip(labels, rows, strict=True):
        count = seen[label, row["threads"]] = seen.get((label, row["threads"]), 0) + 1
        apart.append(label if count == 1 else f"{label} ({count})")
    return apart


def _draw(
    panels: Sequence[_Panel],
    colours: dict[str, str],
    path: Path,
    *,
    heading: str,
    axis: str,
    legend: str,
    unit: Callable[[float], str] | None = None,
) -> None:
    thick = 0.2 if len(colours) > 1 else 0.26
    heights = [len(panel.groups()) * (thick * len(colours) + 0.1) for panel in panels]
    with figure(9.0, sum(heights) + 0.85 * len(panels) + (0.9 if len(colours) > 1 else 0.35)) as drawn:
        grid = drawn.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        for axes, panel in zip(grid[:, 0], panels, strict=True):
            _draw_panel(axes, panel, colours, unit=unit)
            axes.set_xlabel(axis)
        drawn.suptitle(heading, x=0.01, ha="left", fontsize=12, fontweight="bold")
        if len(colours) > 1:
            from matplotlib.patches import Patch

            handles = [
                Patch(facecolor=colour, edgecolor=INK, linewidth=0.6, label=series)
                for series, colour in colours.items()
            ]
            drawn.legend(
                handles=handles,
                title=legend or None,
                loc="outside lower right",
                ncols=len(colours),
                alignment="left",
            )
        save(drawn, path)


def _draw_panel(
    axes: Axes, panel: _Panel, colours: dict[str, str], *, unit: Callable[[float], str] | None
) -> None:
    groups, series = panel.groups(), list(colours)
    height = 0.84 / len(series)
    shown = [bar for bar in panel.bars if bar.value > 0]
    low = min((bar.low for bar in shown), default=1.0) / 2
    high = max((bar.high for bar in shown), default=10.0)
    for bar in panel.bars:
        y = groups.index(bar.group) + (series.index(bar.series) - (len(series) - 1) / 2) * height
        if bar.value > 0:
            error = [[bar.value - bar.low], [bar.high - bar.value]] if bar.high > bar.low else None
            axes.barh(
                y,
                bar.value - low,
                height * 0.92,
                left=low,
                color=colours[bar.series],
                edgecolor=INK,
                linewidth=0.6,
                xerr=error,
                error_kw={"ecolor": "#D55E00", "elinewidth": 1.3, "capsize": 2.5},
            )
        axes.annotate(
            bar.text,
            (bar.high if bar.value > 0 else low, y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    # A share of the axis is left for what is written at the end of the longest bar.
    right = high * 10 ** (0.28 * math.log10(high / low))
    axes.set_xscale("log")
    axes.set_xlim(low, right)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_yticks(range(len(groups)), groups)
    axes.tick_params(axis="y", length=0)
    axes.set_title(panel.title)
    plain_ticks(axes.xaxis, low, right, unit=unit)
    tidy(axes, grid="x")


def _time_text(row: Row) -> str:
    text = f"{row['ms_median']:.3g} ms" if row["ms_median"] < 1000 else f"{row['ms_median']:,.0f} ms"
    speedup = row.get("speedup_vs_private_only")
    return text if speedup is None or row["method"] == _BASELINE else f"{text}, {speedup:.3g}×"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _spread_colours(count: int) -> list[str]:
    return [_THREADS[min(i, len(_THREADS) - 1)] for i in range(count)] if count > 1 else [_THREADS[1]]
