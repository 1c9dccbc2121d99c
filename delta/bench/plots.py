"""Plots of what a benchmark measured, as PNG or SVG. Matplotlib is the extra `bench`, imported when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from delta.bench.plot_bars import plot_bytes, plot_latency
from delta.bench.plot_style import (
    INK,
    METHODS,
    MUTE,
    Row,
    colour_of,
    figure,
    in_order,
    labels_of,
    marker_of,
    million,
    needs,
    plain_ticks,
    save,
    tidy,
)
from delta.errors import ConfigError
from delta.models.mpc_table import byte_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_accuracy", "plot_bytes", "plot_latency", "plot_scale", "plot_timeline"]

_LANES = ("private", "link", "cloud")
_EVENTS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442", "#D55E00", "#888888")
_NOTHING_PRIVATE = " (no private MACs)"
_AXES = {
    "batch": "records a call",
    "image": "pixels along a side of the image",
    "rank": "rank r of the basis",
    "clients": "concurrent clients",
}


def plot_accuracy(points: Sequence[Row], path: Path) -> None:
    """Accuracy against private MACs, on a log axis; points of one label are joined.

    Args:
        points: `label`, `private_macs` (0 is drawn as a level line: nothing runs on the private side),
            `accuracy`, and `low` and `high` or none, all three from 0 to 1.
        path: ends in `.png` or `.svg`.

    Raises:
        ConfigError: nothing to draw, an accuracy out of range, another suffix, or matplotlib is not installed.
        InputError: the file cannot be written.
    """
    needs(points, path, "label", "private_macs", "accuracy")
    if not all(0 <= point["accuracy"] <= 1 for point in points):
        raise ConfigError(f"{path.name} cannot be drawn: an accuracy is a number from 0 to 1")
    labels = in_order(point["label"] for point in points)
    with figure(8.0, 4.6) as drawn:
        axes = drawn.subplots()
        for place, label in enumerate(labels):
            mine = sorted((p for p in points if p["label"] == label), key=lambda p: p["private_macs"])
            placed = [point for point in mine if point["private_macs"] > 0]
            colour, marker, face = _sign(label, place)
            if placed:
                values = [100 * point["accuracy"] for point in placed]
                axes.errorbar(
                    [point["private_macs"] for point in placed],
                    values,
                    yerr=[_reach(placed, "low"), _reach(placed, "high")],
                    color=colour,
                    marker=marker,
                    markerfacecolor=face,
                    markeredgecolor=INK,
                    markeredgewidth=0.8,
                    markersize=7,
                    linewidth=1.3,
                    capsize=3,
                    label=label,
                )
            for point in mine:
                if point["private_macs"] <= 0:
                    text = f"{label}{_NOTHING_PRIVATE}"
                    axes.axhline(
                        100 * point["accuracy"], color=colour, linestyle="--", linewidth=1.3, label=text
                    )
        macs = [point["private_macs"] for point in points if point["private_macs"] > 0] or [1, 10]
        low, high = min(macs) / 1.6, max(macs) * 1.6
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        plain_ticks(axes.xaxis, low, high, unit=million)
        axes.set_xlabel("private MACs a record (log scale)")
        axes.set_ylabel("test accuracy, %")
        axes.set_title("Accuracy against what the private side computes")
        tidy(axes, grid="both")
        by_label = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        names = sorted(by_label, key=lambda name: labels.index(name.removesuffix(_NOTHING_PRIVATE)))
        drawn.legend([by_label[name] for name in names], names, loc="outside right upper")
        save(drawn, path)


def plot_timeline(events: Sequence[Row], path: Path) -> None:
    """One inference as bars in time: lanes `private`, `link`, `cloud`, each event with its number and time.

    Args:
        events: `lane`, `name`, `start_ms`, `end_ms`.
        path: ends in `.png` or `.svg`.

    Raises:
        ConfigError: nothing to draw, a lane of another name, an event that ends before it begins, another
            suffix, or matplotlib is not installed.
        InputError: the file cannot be written.
    """
    needs(events, path, "lane", "name", "start_ms", "end_ms")
    wrong = sorted({event["lane"] for event in events} - set(_LANES))
    if wrong:
        raise ConfigError(f"{path.name} cannot be drawn: lane {wrong[0]!r} is none of {', '.join(_LANES)}")
    if any(event["end_ms"] < event["start_ms"] for event in events):
        raise ConfigError(f"{path.name} cannot be drawn: an event ends before it begins")
    lanes = [lane for lane in _LANES if any(event["lane"] == lane for event in events)]
    ranked = sorted(events, key=lambda event: (lanes.index(event["lane"]), event["start_ms"]))
    first, last = min(e["start_ms"] for e in events), max(e["end_ms"] for e in events)
    whole = max(last - first, 1e-6)
    with figure(9.0, 1.5 + 0.6 * len(lanes) + 0.1 * len(events)) as drawn:
        axes = drawn.subplots()
        near: dict[str, float] = {}
        for number, event in enumerate(ranked, 1):
            y, width = lanes.index(event["lane"]), event["end_ms"] - event["start_ms"]
            axes.barh(
                y,
                width,
                0.5,
                left=event["start_ms"],
                color=_EVENTS[(number - 1) % len(_EVENTS)],
                edgecolor=INK,
                linewidth=0.6,
                label=f"{number}  {event['name']}: {width:.3g} ms",
            )
            # A number stands above its bar, and moves right where the one before it stands too near.
            x = max(event["start_ms"] + width / 2, near.get(event["lane"], -whole) + 0.022 * whole)
            near[event["lane"]] = x
            axes.text(x, y - 0.3, str(number), ha="center", va="bottom", fontsize=8)
        axes.set_yticks(range(len(lanes)), lanes)
        axes.set_ylim(len(lanes) - 0.6, -0.7)
        axes.set_xlim(first - 0.01 * whole, first + 1.03 * max(whole, max(near.values()) - first))
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("milliseconds from the beginning of the call")
        axes.set_title("One inference")
        tidy(axes, grid="x")
        drawn.legend(loc="outside lower left", ncols=2, fontsize=8.5, handlelength=1.2)
        save(drawn, path)


def plot_scale(
    rows: Sequence[Row], path: Path, x: Literal["batch", "image", "rank", "clients"] = "batch"
) -> None:
    """Time a call and bytes a record against one setting, a line for each method, both axes on log scales.

    Args:
        rows: of `delta bench scale`, each with the key `x`; an image may be written 3x32x32. Rows of inference
            are drawn where there are any, else those of training.
        path: ends in `.png` or `.svg`.
        x: the setting that varies.

    Raises:
        ConfigError: nothing to draw, another suffix, a setting of another name, or matplotlib is not installed.
        InputError: the file cannot be written.
    """
    if x not in _AXES:
        raise ConfigError(f"{path.name} cannot be drawn: x {x!r} is none of {', '.join(_AXES)}")
    needs(rows, path, "method", "phase", "batch", "private_macs", "ms_median", "ms_min", "ms_max", x)
    inferring = [row for row in rows if row["phase"] == "infer"]
    rows = inferring or rows
    lines = _lines(rows, x)
    sent = any(row.get("bytes_up") for row in rows)
    with figure(9.6 if sent else 6.4, 4.6) as drawn:
        grid = drawn.subplots(1, 2 if sent else 1, squeeze=False)[0]
        what = "Inference" if inferring else "Training step"
        _draw_lines(
            grid[0], lines, x, "ms", title=f"{what}: time of a call", label="milliseconds (log scale)"
        )
        if sent:
            _draw_lines(
                grid[1], lines, x, "bytes", title="Bytes a record, sent up", label="bytes (log scale)"
            )
        handles, labels = grid[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower left", ncols=4)
        save(drawn, path)


def _lines(rows: Sequence[Row], x: str) -> dict[str, list[Row]]:
    """Rows by line, in order. Private MACs change along `image` and `rank`: they make no line of their own there."""
    if x in ("image", "rank"):
        names = [row["method"] for row in rows]
    else:
        names = labels_of(rows)
    threads = {row.get("threads") for row in rows}
    if len(threads) > 1:
        names = [f"{name}, {row.get('threads')} threads" for name, row in zip(names, rows, strict=True)]
    order = in_order(row["method"] for row in rows)
    pairs = sorted(zip(names, rows, strict=True), key=lambda pair: (order.index(pair[1]["method"]), pair[0]))
    lines: dict[str, list[Row]] = {}
    for name, row in pairs:
        lines.setdefault(name, []).append(row)
    return {name: sorted(found, key=lambda row: _number(row[x])) for name, found in lines.items()}


def _draw_lines(
    axes: Axes, lines: dict[str, list[Row]], x: str, what: Literal["ms", "bytes"], *, title: str, label: str
) -> None:
    seen: dict[str, int] = {}
    places: set[float] = set()
    values: list[float] = []
    for name, rows in lines.items():
        method = rows[0]["method"]
        style = ("-", "--", ":", "-.")[seen.setdefault(method, 0) % 4]
        seen[method] += 1
        drawn = [row for row in rows if what == "ms" or row.get("bytes_up")]
        at = [_number(row[x]) for row in drawn]
        heights = [row["ms_median"] if what == "ms" else row["bytes_up"] / row["batch"] for row in drawn]
        axes.plot(
            at,
            heights,
            label=name,
            color=colour_of(method),
            marker=marker_of(method),
            linestyle=style,
            markeredgecolor=INK,
            markeredgewidth=0.6,
            linewidth=1.4,
        )
        if what == "ms":
            least, most = [row["ms_min"] for row in drawn], [row["ms_max"] for row in drawn]
            axes.fill_between(at, least, most, color=colour_of(method), alpha=0.18, linewidth=0)
            heights = [*least, *most]
        places.update(at)
        values += heights
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = min(values) / 1.5, max(values) * 1.5
    axes.set_ylim(low, high)
    plain_ticks(axes.yaxis, low, high, unit=byte_size if what == "bytes" else None)
    axes.set_xticks(sorted(places), [f"{place:g}" for place in sorted(places)])
    axes.minorticks_off()
    axes.set_xlabel(f"{_AXES[x]} (log scale)")
    axes.set_ylabel(label)
    axes.set_title(title)
    tidy(axes, grid="both")


def _number(value: Any) -> float:  # noqa: ANN401
    """A setting as a number; of an image written 3x32x32, its last side."""
    try:
        return float(str(value).lower().rpartition("x")[2])
    except ValueError:
        raise ConfigError(f"{value!r} is no number, and no shape such as 3x32x32") from None


def _sign(label: str, place: int) -> tuple[str, str, str]:
    """Colour, marker and its filling: a method's own; hollow for a variant of one, and for what is none."""
    method = label.partition(",")[0]
    if method in METHODS:
        colour = colour_of(method)
        return colour, marker_of(method), colour if label == method else "white"
    return MUTE, "os^Dv"[place % 5], "white"


def _reach(points: Sequence[Row], end: str) -> list[float]:
    """How far each accuracy's range goes to one side, in percentage points; 0 where none is given."""
    given = [point["accuracy"] if point.get(end) is None else point[end] for point in points]
    return [100 * abs(bound - point["accuracy"]) for bound, point in zip(given, points, strict=True)]
