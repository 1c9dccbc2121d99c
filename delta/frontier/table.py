"""The frontier as the lines of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from delta.frontier.option import Option, options_of

__all__ = ["COLUMNS", "summary_lines", "table_rows"]

COLUMNS = (
    "",
    "settings",
    "accuracy",
    "main alone",
    "main-only",
    "ms a batch",
    "bytes",
    "ε",
    "SSIM (floor)",
    "matched",
    "label leak (prior)",
    "member AUC",
    "Pareto set",
)


def table_rows(frontier: Mapping[str, Any]) -> list[list[str]]:
    """A line for each point, then for each model without a cloud: of these nothing leaves.

    Raises:
        InputError: the frontier is not as `delta frontier` writes it.
    """
    return [_row(option) for option in options_of(frontier)]


def summary_lines(frontier: Mapping[str, Any]) -> list[str]:
    """What to say below the table."""
    points, baselines = frontier["points"], frontier["baselines"]
    on = sum(bool(point["pareto"]) for point in points)
    worse = [p for p in points if str(p.get("dominated_by") or "").startswith(("main-only", "private-only"))]
    lines = [
        f"{on} of {len(points)} points are in the Pareto set, {len(worse)} are worse than a model without a cloud"
    ]
    if len(worse) == len(points) and points:
        lines.append(
            "No point is worth its cloud here: for each there is a model without one that is no worse at all."
        )
    if any(point["ssim"] is None for point in points):
        lines.append("Some points were not attacked: what was not measured counts as the worst.")
    lines.append(
        f"{len(baselines)} models without a cloud, which give nothing away; leakage is under the attacks that were "
        "run: another attack may do better"
    )
    return lines


def _row(option: Option) -> list[str]:
    entry = option.source
    better = entry.get("dominated_by")
    pareto = "yes" if entry.get("pareto") else f"no: {better}" if better else "no"
    if option.method != "delta":
        figures = [_percent(option.accuracy), "", "", _ms(option), "0", "", "", "", "", ""]
        return [option.name, f"reads {entry.get('reads', 'image')}", *figures, pareto]
    accuracy = entry["accuracy"]
    return [
        option.name,
        _settings(entry),
        _percent(option.accuracy),
        _percent(accuracy.get("main_alone")),
        _percent(accuracy.get("main_only")),
        _ms(option),
        "–" if option.bytes_per_record is None else f"{option.bytes_per_record:.0f}",
        "none" if option.epsilon is None or math.isinf(option.epsilon) else f"{option.epsilon:.3g}",
        _beside(option.ssim, entry.get("ssim_floor"), digits=3, unit=""),
        _percent(option.matching_top1),
        _beside(option.label_leak, entry.get("label_prior"), digits=1, unit=" %"),
        "–" if entry.get("membership_auc") is None else f"{entry['membership_auc']:.3f}",
        pareto,
    ]


def _settings(entry: Mapping[str, Any]) -> str:
    some = entry["settings"]
    noise = some["noise"] if some["noise"] == "none" else f"ε {some['noise']:g}"
    return (
        f"{some['private_macs'] / 1e6:.2f} M MACs, r {some['rank']}, {some['block']}→{some['keep']}, "
        f"{some['offload']}, {some['message']} k {some['k']}{_learned(some)}, noise {noise}, {some['fusion']}, "
        f"{some['backbone']}" + (f", {some['layout']}" if some.get("layout", "kept") != "kept" else "")
    )


def _learned(some: Mapping[str, Any]) -> str:
    """What a learned message map is told apart by."""
    if some.get("adversary") is None:
        return ""
    return f" stride {some['stride']} λ {some['adversary']:g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"


def _ms(option: Option) -> str:
    return "–" if option.private_ms is None else f"{option.private_ms:.2f}"


def _beside(value: float | None, other: float | None, *, digits: int, unit: str) -> str:
    if value is None:
        return "–"
    text = f"{value:.{digits}f}{unit}"
    return text if other is None else f"{text} ({other:.{digits}f}{unit})"
