"""A choice in plain words, and as JSON. It speaks of what was measured, and vouches for nothing else."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

from delta.frontier.choose import Choice, Miss
from delta.frontier.option import AXES, Axis, Option

__all__ = ["choice_json", "choice_lines", "train_command"]

_EVIDENCE = "Leakage is under the attacks that were run: another attack may do better."


def choice_lines(choice: Choice, frontier: Mapping[str, Any]) -> list[str]:
    """What to tell the user, the most important first."""
    if choice.chosen is None:
        return _refusal(choice)
    lines = []
    chosen, point, rival = choice.chosen, choice.point, choice.rival
    if chosen.method != "delta":
        lines.append(f"{chosen.name} does: no cloud, nothing leaves. {_alone(chosen)}")
        lines += _how(chosen)
        if point is not None:
            gain = (point.accuracy or 0.0) - (chosen.accuracy or 0.0)
            lines.append(f"The cheapest point with the cloud is {point.name}: {_figures(point)}.")
            if gain > 0:
                lines.append(
                    f"  It is {gain:.1f} percentage points more accurate, and gives away what is said there."
                )
            lines += [f"  {train_command(point, frontier)}", _EVIDENCE]
        return lines
    if rival is not None:
        slower = (rival.private_ms or math.inf) - (chosen.private_ms or 0.0)
        accurate = (rival.accuracy or 0.0) - (chosen.accuracy or 0.0)
        if accurate >= 0:
            lines.append(
                f"Consider {rival.name} first: no cloud, nothing leaves, {accurate:.1f} percentage points more "
                f"accurate than the cheapest point, for {slower:.2f} ms more a batch. {_alone(rival)}"
            )
    lines.append(f"{chosen.name} is the cheapest that keeps every limit: {_figures(chosen)}.")
    lines.append(f"  settings: {_settings(chosen)}")
    if chosen.epsilon is not None and math.isinf(chosen.epsilon):
        lines.append("  no noise, and so no claim: empirical obfuscation")
    lines.append(f"  {train_command(chosen, frontier)}")
    if rival is None:
        lines.append("No model without a cloud keeps every limit.")
    elif accurate < 0:
        lines.append(f"Without a cloud, {rival.name} keeps them, too. {_alone(rival)}")
    lines.append(_EVIDENCE)
    return lines


def choice_json(choice: Choice, frontier: Mapping[str, Any]) -> dict[str, Any]:
    """The figures behind the words."""
    points = [one for one in (choice.chosen, choice.point) if one is not None and one.method == "delta"]
    return {
        "kind": "choice",
        "limits": {limit.name: limit.value for limit in choice.limits},
        "feasible": choice.chosen is not None,
        "chosen": _entry(choice.chosen),
        "point": _entry(choice.point),
        "without_cloud": _entry(choice.rival),
        "command": train_command(points[0], frontier) if points else None,
        "misses": [
            {
                "limit": miss.limit.name,
                "asked": miss.limit.value,
                "best": miss.value,
                "gap": miss.gap,
                "by": None if miss.best is None else miss.best.name,
            }
            for miss in choice.misses
        ],
        "conflicts": [[limit.name for limit in some] for some in choice.conflicts],
    }


def train_command(point: Option, frontier: Mapping[str, Any]) -> str:
    """The command that trains a point, with the first of its seeds."""
    base = str(frontier.get("sweep", {}).get("base", "CONFIG.yaml"))
    words = ["delta", "train", "--config", base]
    for change in point.source.get("changes", ()):
        words += ["--set", str(change)]
    words += ["--seed", str(next(iter(point.source.get("seeds", ())), 0))]
    return shlex.join(words)


def _refusal(choice: Choice) -> list[str]:
    lines = ["Nothing keeps every limit: no point with the cloud, and no model without one."]
    lines += [f"  {_miss(miss)}" for miss in choice.misses]
    for some in choice.conflicts:
        names = _and([limit.option_text for limit in some])
        if len(some) == 1:
            lines.append(f"{names} is out of reach by itself.")
        else:
            lines.append(f"{names} exclude each other; any fewer of them can be kept together.")
    return lines


def _miss(miss: Miss) -> str:
    limit, axis = miss.limit, miss.limit.axis
    if miss.best is None:
        return f"{limit.option_text}: nothing keeps the other limits, whatever this one is"
    if miss.value is None:
        why = "has no finite ε" if axis.field == "epsilon" else "was not measured for it"
        return f"{limit.option_text}: of what keeps the others, nothing can be said: {miss.best.name} {why}"
    word = "highest" if axis.higher else "lowest"
    text = f"{limit.option_text}: with all others kept the {word} {axis.label} is {_value(axis, miss.value)}"
    by = "less than asked" if axis.higher else "more than asked"
    gap = _value(axis, miss.gap).replace(" %", " percentage points")
    return f"{text} ({miss.best.name}), {gap} {by}"


def _figures(option: Option) -> str:
    """Figures of a point in one line, the time first."""
    order = ("private_ms", "accuracy", "ssim", "matching_top1", "label_leak", "bytes_per_record")
    axes = {axis.field: axis for axis in AXES}
    parts = [f"{axes[name].label} {_value(axes[name], getattr(option, name))}" for name in order]
    if option.epsilon is not None and math.isfinite(option.epsilon):
        parts.append(f"ε = {option.epsilon:.3g} a release")
    return ", ".join(parts)


def _alone(rival: Option) -> str:
    """Figures of a model without a cloud, as a sentence."""
    time, accuracy = (
        next(axis for axis in AXES if axis.field == name) for name in ("private_ms", "accuracy")
    )
    return (
        f"It takes {_value(time, rival.private_ms)} a batch, and is right for {_value(accuracy, rival.accuracy)} of "
        "the records."
    )


def _value(axis: Axis, value: float | None) -> str:
    if value is None:
        return "not measured"
    digits = {"ssim": 3, "private_ms": 2, "epsilon": 2, "bytes_per_record": 0}.get(axis.field, 1)
    return f"{value:.{digits}f}{axis.unit}"


def _settings(option: Option) -> str:
    return ", ".join(f"{name} {value}" for name, value in dict(option.source.get("settings", {})).items())


def _how(rival: Option) -> list[str]:
    if rival.method == "private-only":
        return ["  It is the whole model on the owner's machine."]
    reads = "principal part" if rival.source.get("reads") == "principal" else "image"
    return [
        f"  It reads the {reads}; `delta train` trains it as the control `main_only` of the same private MACs."
    ]


def _entry(option: Option | None) -> dict[str, Any] | None:
    if option is None:
        return None
    fields = {axis.field: getattr(option, axis.field) for axis in AXES}
    epsilon = None if option.epsilon is None or math.isinf(option.epsilon) else option.epsilon
    return {
        "method": option.method,
        "name": option.name,
        **fields,
        "epsilon": epsilon,
        "private_macs": option.private_macs,
        "settings": option.source.get("settings"),
    }


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
