"""Charts of a frontier, as PNG or SVG. Matplotlib is the extra `bench`, imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delta.bench.plot_style import (
    INK,
    MUTE,
    colour_of,
    figure,
    marker_of,
    million,
    needs,
    plain_ticks,
    save,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_all", "plot_budgets", "plot_leakage"]

# Okabe and Ito's palette without its yellow: thin lines of it are hard to see.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_LEAKS = (
    ("ssim", "inversion SSIM, strongest attack"),
    ("matching_top1", "candidates matched, top-1, %"),
    ("label_leak", "labels the cloud guesses, %"),
)

Row = Mapping[str, Any]


def draw_all(frontier: Mapping[str, Any], folder: Path) -> list[Path]:
    """Every chart, as PNG; returns their paths.

    Raises:
        ConfigError: there are no points, or matplotlib is not installed.
        InputError: a file cannot be written.
    """
    leakage, budgets = folder / "frontier-leakage.png", folder / "frontier-budgets.png"
    plot_leakage(frontier, leakage)
    plot_budgets(frontier, budgets)
    return [leakage, budgets]


def plot_leakage(frontier: Mapping[str, Any], path: Path) -> None:
    """Accuracy against each measure of leakage, a colour for each private budget; filled: in the Pareto set.

    A dashed line is the best main-only model of a budget, which gives nothing away: a dot below it is not worth it.

    Args:
        frontier: as `delta frontier` writes it.
        path: ends in `.png` or `.svg`.

    Raises:
        ConfigError: there are no points, another suffix, or matplotlib is not installed.
        InputError: the file cannot be written.
    """
    points: Sequence[Row] = frontier["points"]
    needs(points, path, "accuracy")
    leaks = [leak for leak in _LEAKS if any(point.get(leak[0]) is not None for point in points)] or [
        _LEAKS[0]
    ]
    budgets = sorted({_budget(point) for point in points})
    with figure(1.0 + 3.6 * len(leaks), 5.0) as drawn:
        panels = drawn.subplots(1, len(leaks), sharey=True, squeeze=False)[0]
        for panel, (field, label) in zip(panels, leaks, strict=True):
            _draw_leak(panel, points, budgets, field)
            panel.set_xlabel(label)
            tidy(panel, grid="both")
        panels[0].set_ylabel("test accuracy, %")
        panels[0].set_title("Accuracy against what is given away")
        drawn.legend(handles=_leak_legend(points, budgets), loc="outside lower center", ncols=3)
        save(drawn, path)


def plot_budgets(frontier: Mapping[str, Any], path: Path) -> None:
    """Accuracy against private MACs: each point with its cloud, its main model alone, and the models without one.

    Args:
        frontier: as `delta frontier` writes it.
        path: ends in `.png` or `.svg`.

    Raises:
        ConfigError: there are no points, another suffix, or matplotlib is not installed.
        InputError: the file cannot be written.
    """
    points: Sequence[Row] = frontier["points"]
    needs(points, path, "accuracy", "private_macs")
    with figure(8.0, 4.8) as drawn:
        axes = drawn.subplots()
        macs = [float(point["private_macs"]) for point in points]
        for noisy, (colour, name) in enumerate(
            ((colour_of("delta"), "with the cloud, no noise"), ("#56B4E9", "with the cloud, with noise"))
        ):
            some = [point for point in points if (point["epsilon"] is not None) == bool(noisy)]
            if some:
                axes.scatter(
                    [point["private_macs"] for point in some],
                    [point["accuracy"]["delta"] for point in some],
                    label=name,
                    color=colour,
                    marker="v" if noisy else "o",
                    s=42,
                    edgecolor=INK,
                    linewidth=0.6,
                    zorder=3,
                )
        _draw_line(axes, _best(points, "main_alone"), "Delta's main model alone", MUTE, "x", "none")
        small = [one for one in frontier["baselines"] if one["method"] == "main-only"]
        rivals = [(float(one["private_macs"]), one["accuracy"]) for one in small if one["private_macs"]]
        macs += [place for place, _ in rivals]
        name = "best main-only model (no cloud)"
        _draw_line(axes, _highest(rivals), name, colour_of("main-only"), marker_of("main-only"), "--")
        whole = [one["accuracy"] for one in frontier["baselines"] if one["method"] == "private-only"]
        if whole:
            axes.axhline(max(whole), color=INK, linestyle="-.", linewidth=1.2, label="whole model (no cloud)")
        low, high = min(macs) / 1.5, max(macs) * 1.5
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        plain_ticks(axes.xaxis, low, high, unit=million)
        axes.set_xlabel("private MACs a record (log scale)")
        axes.set_ylabel("test accuracy, %")
        axes.set_title("Accuracy against what the private side computes")
        tidy(axes, grid="both")
        drawn.legend(loc="outside lower center", ncols=2)
        save(drawn, path)


def _draw_leak(axes: Axes, points: Sequence[Row], budgets: Sequence[float], field: str) -> None:
    for place, budget in enumerate(budgets):
        mine = [point for point in points if _budget(point) == budget]
        colour = _COLOURS[place % len(_COLOURS)]
        for point in mine:
            if point.get(field) is None:
                continue
            axes.scatter(
                [point[field]],
                [point["accuracy"]["delta"]],
                s=50,
                marker="o" if point["epsilon"] is None else "v",
                facecolor=colour if point["pareto"] else "white",
                edgecolor=colour,
                linewidth=1.4,
                zorder=3,
            )
        rivals = [point["accuracy"]["main_only"] for point in mine]
        axes.axhline(max(rivals), color=colour, linestyle="--", linewidth=1.2)
    floors = [point["ssim_floor"] for point in points if point.get("ssim_floor") is not None]
    ground = floors if field == "ssim" else [
        point["label_prior"] for point in points if field == "label_leak" and point.get("label_prior") is not None
    ]  # fmt: skip
    if ground:
        axes.axvline(sum(ground) / len(ground), color=MUTE, linestyle=":", linewidth=1.3)
    axes.margins(x=0.08, y=0.1)


def _leak_legend(points: Sequence[Row], budgets: Sequence[float]) -> list[Any]:
    from matplotlib.lines import Line2D

    def sign(label: str, **style: Any) -> Line2D:  # noqa: ANN401
        return Line2D([], [], **{"linestyle": "none", "markersize": 7, **style}, label=label)

    found = [
        sign(f"{million(budget)} private MACs", marker="s", color=_COLOURS[place % len(_COLOURS)])
        for place, budget in enumerate(budgets)
    ]
    found.append(sign("no noise", marker="o", color=INK))
    if any(point["epsilon"] is not None for point in points):
        found.append(sign("with noise (an ε)", marker="v", color=INK))
    return [
        *found,
        sign("hollow: not in the Pareto set", marker="o", markerfacecolor="white", markeredgecolor=INK),
        sign("main-only of the budget (no cloud)", linestyle="--", color=INK),
        sign("an attack that sees nothing", linestyle=":", color=MUTE),
    ]


def _draw_line(
    axes: Axes, places: Sequence[tuple[float, float]], label: str, colour: str, marker: str, style: str
) -> None:
    if places:
        axes.plot(
            [place for place, _ in places],
            [value for _, value in places],
            label=label,
            color=colour,
            marker=marker,
            linestyle=style,
            linewidth=1.3,
            markersize=6,
        )


def _best(points: Sequence[Row], key: str) -> list[tuple[float, float]]:
    return _highest([(float(point["private_macs"]), point["accuracy"][key]) for point in points])


def _highest(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The highest value at each place, in their order."""
    best: dict[float, float] = {}
    for place, value in places:
        best[place] = max(value, best.get(place, value))
    return sorted(best.items())


def _budget(point: Row) -> float:
    return float(point["settings"]["private_macs"] or point["private_macs"])
