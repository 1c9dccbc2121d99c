"""What all plots share: colours, order and names of methods, figures without global state, writing a file."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delta.errors import ConfigError
from delta.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "INK",
    "METHODS",
    "MUTE",
    "Row",
    "colour_of",
    "figure",
    "in_order",
    "labels_of",
    "marker_of",
    "million",
    "needs",
    "plain_ticks",
    "save",
    "tidy",
]

Row = Mapping[str, Any]

METHODS = (
    "private-only",
    "main-only",
    "delta",
    "three-leg-race",
    "slalom",
    "dp-input",
    "dp-sgd",
    "he",
    "cloud-only",
)
"""The order in which methods stand in every plot; others follow by name."""

# Okabe and Ito's palette, which colour-blind readers can tell apart, and a grey.
_COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#F0E442", "#D55E00", "#888888")
_MARKERS = ("s", "D", "o", "^", "v", "P", "X", "*", "h")
INK, MUTE = "#1b1f24", "#5b6570"
_SUFFIXES = {".png": "png", ".svg": "svg"}
_RC = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTE,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d9dee4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "delta",  # ids are not drawn at random
}


@contextmanager
def figure(width: float, height: float, **settings: Any) -> Iterator[Figure]:  # noqa: ANN401
    """An empty figure of so many inches, in our style.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plots need the package 'matplotlib'; install delta-split[bench]") from None
    with matplotlib.rc_context(_RC):  # type: ignore[arg-type]
        yield Figure(figsize=(width, height), layout="constrained", **settings)


def save(drawn: Figure, path: Path) -> None:
    """Write a figure whole or not at all, as PNG or SVG by the path's suffix.

    Raises:
        ConfigError: another suffix.
        InputError: the file cannot be written.
    """
    buffer = io.BytesIO()
    kind = _kind(path)
    drawn.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})
    write_whole(path, buffer.getvalue(), mode=0o644)


def needs(rows: Sequence[Row], path: Path, *keys: str) -> None:
    """Refuse what cannot be drawn, before anything is.

    Raises:
        ConfigError: no rows, a row without one of the keys, or a path of another suffix.
    """
    _kind(path)
    if not rows:
        raise ConfigError(f"{path.name} cannot be drawn: there are no rows; run the benchmark first")
    absent = sorted({key for key in keys for row in rows if row.get(key) is None})
    if absent:
        raise ConfigError(f"{path.name} cannot be drawn: rows lack {', '.join(absent)}")


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods, each once, in the order of every plot."""
    return sorted(set(methods), key=_place)


def colour_of(method: str) -> str:
    """The method's colour, in every plot the same; other methods are grey."""
    return _COLOURS[METHODS.index(method)] if method in METHODS else _COLOURS[-1]


def marker_of(method: str) -> str:
    """The method's marker, so that colour is never the only sign."""
    return _MARKERS[METHODS.index(method)] if method in METHODS else "d"


def labels_of(rows: Sequence[Row]) -> list[str]:
    """A label for each row: method, way to train, and private MACs where a method comes with several.

    Rows that differ in threads or link alone have one label.
    """
    budgets: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        budgets.setdefault((row["method"], row["phase"]), set()).add(row["private_macs"])
    labels = []
    for row in rows:
        label: str = row["method"]
        if row["phase"] not in ("infer", "train"):
            label += f", {row['phase'].removeprefix('train').strip(' -:,')}"
        if len(budgets[row["method"], row["phase"]]) > 1:
            label += f", {million(row['private_macs'])} MACs"
        labels.append(label)
    return labels


def million(count: float) -> str:
    """A count in short: `2.1 M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def plain_ticks(axis: Any, low: float, high: float, *, unit: Any = None) -> None:  # noqa: ANN401
    """Ticks of a logarithmic axis as plain numbers, denser where it spans little.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`.
        low: its lower end.
        high: its upper end.
        unit: makes a tick's text; none for the number itself.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    span = high / low
    subs = (1.0,) if span > 200 else (1.0, 2.0, 5.0) if span > 8 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: unit(value) if unit else _number(value)))
    axis.set_minor_formatter(NullFormatter())


def tidy(axes: Axes, *, grid: str) -> None:
    """Grid lines along one axis only, and no frame at top and right."""
    axes.grid(False)
    axes.grid(True, axis=grid, which="major")  # type: ignore[arg-type]
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _kind(path: Path) -> str:
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"{path.name} is neither .png nor .svg; name one of these")
    return _SUFFIXES[path.suffix.lower()]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _place(method: str) -> tuple[int, str]:
    return (METHODS.index(method) if method in METHODS else len(METHODS), method)
