"""`delta frontier`: the trade that users choose from, and where it is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from delta.report.charts import Canvas, Chart, Dot, Series, View, macs_axis, scatter
from delta.report.figures import Figures
from delta.report.markup import Html, element, joined, table
from delta.report.numbers import DASH, count, decimal, epsilon_text, millions, ms, percent, size, spread
from delta.report.read import Run
from delta.report.section import Section, tiles
from delta.report.verdict import chosen_against, dominated, nothing_proved

__all__ = ["SSIM_LIMIT", "TOP1_LIMIT", "frontier_sections"]

SSIM_LIMIT = 0.35
"""Inversion SSIM at which the project is judged."""
TOP1_LIMIT = 5.0
"""Matching top-1 of 1,000 candidates at which the second figure stands, percent."""

_CLOUDLESS = ("main-only", "private-only")
_TERMS = frozenset(
    {
        "main model alone",
        "private MACs",
        "label leak",
        "ε and δ",
        "matching",
        "SSIM",
        "floor",
        "membership",
        "Pareto set",
    }
)
_LINES = (
    ("main_only", "best model without a cloud", 1, "dash"),
    ("main_alone", "Delta's main model alone", 2, "dot"),
    ("private_only", "whole model on the private side", 6, "dot"),
)
_SETTINGS = (
    "private_macs", "rank", "keep", "message", "k", "noise", "offload", "fusion",
)  # fmt: skip


@dataclass(frozen=True)
class _Leak:
    """A way to measure what is given away."""

    label: str
    title: str
    path: str
    floor: str | None = None


_LEAKS = (
    _Leak("reconstruction", "SSIM under the strongest attack", "ssim", "ssim_floor"),
    _Leak("matching", "images matched, percent", "matching_top1"),
    _Leak("label", "labels that the cloud guesses, percent", "label_leak"),
    _Leak("membership", "membership AUC (0.5 is a coin toss)", "membership_auc"),
)


def frontier_sections(runs: Sequence[Run], canvas: Canvas, include_records: bool) -> list[Section]:
    """A section a run."""
    del include_records  # a frontier holds no records
    return [_section(run, canvas) for run in runs]


def _section(run: Run, canvas: Canvas) -> Section:
    every = run.figures.parts("points")
    points_ = sorted(every, key=lambda one: (_macs(one) or 0.0, one.number("ssim") or 0.0))
    best = max(points_, key=lambda one: one.number("accuracy.delta") or 0.0)
    rivals = [name for one in points_ if (name := one.text("dominated_by")) and name.startswith(_CLOUDLESS)]
    beaten = dominated(points=len(points_), beaten=len(rivals))
    verdict = (
        _within(
            points_,
            f"inversion SSIM of at most {SSIM_LIMIT:g}",
            lambda one: _at_most(one, "ssim", SSIM_LIMIT),
        ),
        _within(
            points_,
            f"matching of at most {TOP1_LIMIT:g} %",
            lambda one: _at_most(one, "matching_top1", TOP1_LIMIT),
        ),
        *([] if beaten is None else [beaten]),
        nothing_proved(),
    )
    pareto = sum(one.flag("pareto") is True for one in points_)
    blocks: list[Html] = [
        tiles([
            ("points measured", count(len(points_)), f"{count(pareto)} in the Pareto set"),
            ("highest accuracy with the cloud", percent(best.number("accuracy.delta")),
             f"at {millions(_macs(best))} private MACs"),
            ("SSIM of the points", spread(_all(points_, "ssim"), digits=2, unit=""), "1 is the original"),
            ("label guessed by the cloud", spread(_all(points_, "label_leak"), digits=0), "over the points"),
        ]),
        canvas.add(_trade(points_)),
        canvas.add(_budgets(points_)),
        element("p", "Filled: in the Pareto set, so that nothing else, with a cloud or without, is as good in "
                "everything and better in something. Hollow: something is. ", element("code", "delta choose"),
                " names the cheapest point within limits of yours, or says that a model without a cloud is the better "
                "choice."),
        _table(points_),
        *_without(run.figures.parts("baselines")),
        *_failed(run.figures.parts("failed")),
    ]  # fmt: skip
    guess, image = _all(points_, "label_leak"), _all(points_, "matching_top1")
    gives = (
        f"at these points the cloud guesses {spread(guess, digits=0)} of the labels by itself",
        f"and {spread(image, digits=1)} of the images are matched among the candidates",
    )
    name = run.figures.text("name") or run.figures.text("dataset") or run.source
    return Section(f"Frontier of {name}", verdict, tuple(blocks), (), gives, _TERMS)


def _within(points_: Sequence[Figures], limit: str, keeps: Callable[[Figures], bool]) -> str:
    """The point that gains the most among those within a limit."""
    some = [one for one in points_ if keeps(one)]
    best = max(some, key=lambda one: _gain(one, "main_alone") or float("-inf"), default=None)
    return chosen_against(
        limit=limit,
        points=len(some),
        gain=None if best is None else _gain(best, "main_alone"),
        rival_gain=None if best is None else _gain(best, "main_only"),
        macs=None if best is None else _macs(best),
    )


def _trade(points_: Sequence[Figures]) -> Chart:
    """Accuracy against leakage, a colour for each private budget."""
    budgets = list(dict.fromkeys(_macs(one) for one in points_))
    views = []
    for leak in _LEAKS:
        if not _all(points_, leak.path):
            continue
        series, shapes = [], []
        for position, budget in enumerate(budgets):
            some = [one for one in points_ if _macs(one) == budget]
            name = f"{millions(budget)} private MACs"
            series.append(Series(name, _dots(some, leak.path), position))
            rivals = _all(some, "accuracy.main_only")
            if rivals:
                shapes.append(_level(sum(rivals) / len(rivals), position))
        floor = _all(points_, leak.floor) if leak.floor else []
        notes = []
        if floor:
            shapes.append(_upright(sum(floor) / len(floor)))
            notes.append({
                "x": sum(floor) / len(floor), "y": 0, "yref": "paper", "yanchor": "bottom", "xanchor": "left",
                "text": " no release", "showarrow": False, "font": {"color": "--mute"},
            })  # fmt: skip
        views.append(scatter(
            series, label=leak.label, x={"title": leak.title}, y={"title": "accuracy, percent"}, shapes=shapes,
            annotations=notes,
        ))  # fmt: skip
    caption = (
        "Each dot is a setting, with the cloud; further left gives less away, higher is more accurate. The dashed line "
        "of a colour is the best model without a cloud for the same private MACs: it sends nothing, so a dot below its "
        "line is not worth choosing. Point at a dot for its settings; drag to zoom, double-click to come back."
    )
    return Chart("Accuracy against leakage", caption, tuple(views) or (_nothing(),))


def _budgets(points_: Sequence[Figures]) -> Chart:
    """Accuracy against private MACs, with the cloud and without."""
    series = [Series("with the cloud, each setting", _dots(points_, None), 0)]
    budgets = sorted({macs for one in points_ if (macs := _macs(one)) is not None})
    for key, name, colour, line in _LINES:
        level = key == "private_only"
        found: dict[float, list[float]] = {}
        for one in points_:
            at = one.number("main_only_macs") if key == "main_only" else None
            at, value = at or _macs(one), one.number(f"accuracy.{key}")
            if at is not None and value is not None:
                found.setdefault(at, []).append(value)
        if level and found:
            # It runs on no budget: its level is drawn over those that there are.
            every = [value for values in found.values() for value in values]
            found = {budgets[0]: every, budgets[-1]: every}
        lines = []
        for at, values in sorted(found.items()):
            average = sum(values) / len(values)
            where = "all of it on the private side" if level else f"{millions(at)} private MACs"
            lines.append(Dot(at / 1e6, average, (name, percent(average, digits=2), where)))
        series.append(Series(name, tuple(lines), colour, line, markers=not level))
    view = scatter(
        [one for one in series if one.dots],
        x=macs_axis(budgets),
        y={"title": "accuracy, percent"},
    )
    caption = (
        "What the same private computing reaches with the cloud (dots) and without (lines). The whole model runs on "
        "the private side with more MACs than any dot here; its level is the goal."
    )
    return Chart("Accuracy against private MACs", caption, (view,))


def _dots(points_: Sequence[Figures], leak: str | None) -> tuple[Dot, ...]:
    """Dots against a leak, or against private MACs in millions; Pareto points are filled."""
    found = []
    for one in points_:
        macs = _macs(one)
        x = one.number(leak) if leak is not None else None if macs is None else macs / 1e6
        y = one.number("accuracy.delta")
        if x is not None and y is not None:
            low, high = one.range("spread.accuracy.delta")
            found.append(Dot(x, y, _hover(one), low, high, marked=one.flag("pareto") is not False))
    return tuple(found)


def _hover(one: Figures) -> tuple[str, ...]:
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in _settings(one)]
    lines.append(f"accuracy {percent(one.number('accuracy.delta'))}, without the cloud {_alone(one)}")
    lines.append(f"SSIM {decimal(one.number('ssim'))}, matched {percent(one.number('matching_top1'))}")
    lines.append(f"label leak {percent(one.number('label_leak'))}, {_epsilon(one)}")
    lines.append(
        f"{ms(one.number('private_ms'))} on the private side, {size(one.number('bytes_per_record'))} a record"
    )
    return tuple(lines)


def _table(points_: Sequence[Figures]) -> Html:
    every = [_settings(one) for one in points_]
    same = [pair for pair in every[0] if all(pair in settings for settings in every) and len(every) > 1]
    varied = (
        {name for settings in every for name, _ in settings} - {name for name, _ in same} - {"private macs"}
    )
    rows = [
        [
            millions(_macs(one)),
            ", ".join(f"{name} {value}" for name, value in _settings(one) if name in varied) or "as all",
            percent(one.number("accuracy.delta")),
            _alone(one),
            percent(one.number("accuracy.main_only")),
            percent(one.number("accuracy.random_bits")),
            percent(one.number("accuracy.noiseless_bits")),
            decimal(one.number("ssim")),
            percent(one.number("matching_top1")),
            percent(one.number("label_leak")),
            decimal(one.number("membership_auc")),
            _epsilon(one),
            ms(one.number("private_ms")),
            size(one.number("bytes_per_record")),
            "yes" if one.flag("pareto") else "",
        ]
        for one in points_
    ]
    columns = [
        "private MACs", "settings", "Delta", "main model alone", "best without a cloud", "random bits",
        "noiseless bits", "SSIM", "matched", "label guessed", "membership AUC", "claim", "private time", "sent",
        "Pareto",
    ]  # fmt: skip
    shared = ", ".join(f"{name} {value}" for name, value in same)
    grid = table(columns, rows, caption="Every point")
    return joined([element("p", f"All points have {shared}."), grid]) if shared else grid


def _without(baselines: Sequence[Figures]) -> list[Html]:
    """Models without a cloud, which are choices as well."""
    if not baselines:
        return []
    rows = [
        [
            (one.text("method") or DASH).replace("-", " "),
            millions(one.number("private_macs")),
            percent(one.number("accuracy")),
            ms(one.number("private_ms")),
            "yes" if one.flag("pareto") else "",
        ]
        for one in baselines
    ]
    columns = ["model", "private MACs", "accuracy", "time of a batch", "Pareto"]
    return [table(columns, rows, caption="Without a cloud: nothing leaves")]


def _failed(failures: Sequence[Figures]) -> list[Html]:
    """What could not be measured is told."""
    return [
        element("p", f"{count(len(failures))} settings could not be measured, and are missing here.")
    ] if failures else []  # fmt: skip


def _settings(one: Figures) -> list[tuple[str, str]]:
    """Settings by name, those of the sweep first, as short words."""
    settings = one.part("settings")
    names = [name for name in _SETTINGS if name in settings.values]
    names += [name for name in settings.values if name not in _SETTINGS]
    return [(name.replace("_", " "), _word(settings.get(name), name)) for name in names]


def _word(value: object, name: str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return (
            millions(float(value))
            if name == "private_macs"
            else f"{'ε = ' if name == 'noise' else ''}{value:g}"
        )
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return " ".join(f"{key} {_word(one, key)}" for key, one in value.items())
    return "none" if value is None else DASH


def _macs(one: Figures) -> float | None:
    """The budget of the sweep: points of one budget share a colour; else what the point measured."""
    return one.number("settings.private_macs") or one.number("private_macs")


def _gain(one: Figures, rival: str) -> float | None:
    delta, other = one.number("accuracy.delta"), one.number(f"accuracy.{rival}")
    return None if delta is None or other is None else delta - other


def _at_most(one: Figures, path: str, limit: float) -> bool:
    value = one.number(path)
    return value is not None and value <= limit


def _all(points_: Sequence[Figures], path: str) -> list[float]:
    return [value for one in points_ if (value := one.number(path)) is not None]


def _alone(one: Figures) -> str:
    return percent(one.number("accuracy.main_alone"))


def _epsilon(one: Figures) -> str:
    epsilon = one.number("epsilon")
    return "no claim" if epsilon is None else f"ε = {epsilon_text(epsilon)}"


def _level(y: float, position: int) -> dict[str, object]:
    colour = f"--c{position % 7 + 1}"
    line = {"color": colour, "width": 1.3, "dash": "dash"}
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": y,
        "y1": y,
        "line": line,
        "layer": "below",
    }


def _upright(x: float) -> dict[str, object]:
    line = {"color": "--mute", "width": 1.3, "dash": "dot"}
    return {
        "type": "line",
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "x0": x,
        "x1": x,
        "line": line,
        "layer": "below",
    }


def _nothing() -> View:
    """Where no leakage was measured at all."""
    return scatter((), x={"title": "leakage: not measured"}, y={"title": "accuracy, percent"})
