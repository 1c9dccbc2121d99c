"""The frontier as JSON: points over their seeds, the models without a cloud, and which are in the Pareto set."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from delta.data.records import DataSplits
from delta.frontier.cell import Cell
from delta.frontier.grid import Point, SweepConfig
from delta.frontier.option import AXES, options_of
from delta.frontier.pareto import dominated_by
from delta.frontier.sweep import Failure

__all__ = ["frontier_json"]

_ACCURACIES = ("delta", "main_alone", "main_only", "random_bits", "noiseless_bits", "private_only")
_MEANS = (
    "alpha",
    "bytes_up",
    "bytes_down",
    "ssim",
    "ssim_floor",
    "matching_top1",
    "label_leak",
    "label_prior",
    "membership_auc",
)
_SAME = (
    "epsilon",
    "delta",
    "mu",
    "claim",
    "private_macs",
    "cloud_macs",
    "main_only_macs",
    "main_only_reads",
    "private_only_macs",
    "matching_candidates",
    "records",
    "decoder",
    "settings",
)
"""What is equal for all seeds, or told of the first alone."""

Figures = Mapping[str, Any]


def frontier_json(
    sweep: SweepConfig,
    points: Sequence[Point],
    cells: Sequence[Cell],
    data: DataSplits,
    *,
    figures: Mapping[str, Figures],
    times: Mapping[int, Figures],
    failures: Sequence[Failure],
    environment: Mapping[str, Any],
    file: str,
) -> dict[str, Any]:
    """All that `delta frontier --json` writes.

    Args:
        sweep: what was swept.
        points: those that were asked for.
        cells: of these points.
        data: the records.
        figures: of each cell that was measured, by identity.
        times: by the point's number.
        failures: cells that could not be measured.
        environment: the machine.
        file: the sweep file's path.
    """
    entries = []
    for point in points:
        mine = [cell for cell in cells if cell.point == point.number and cell.identity in figures]
        if mine:
            entries.append(_entry(point, mine, [figures[cell.identity] for cell in mine], times))
    frontier: dict[str, Any] = {
        "kind": "frontier",
        "name": sweep.name,
        "dataset": data.name,
        "tee": "simulated",
        "seeds": list(sweep.seeds),
        "sweep": {"file": file, **sweep.model_dump(mode="json"), "base": str(sweep.base)},
        "data": {"name": data.name, "training": len(data.train), "test": len(data.test)},
        "axes": [{"field": axis.field, "better": "high" if axis.higher else "low"} for axis in AXES],
        "points": entries,
        "baselines": _baselines(entries),
        "environment": dict(environment),
        "failed": [failure.to_json() for failure in failures],
    }
    marked = [*entries, *frontier["baselines"]]
    for entry, better in zip(marked, dominated_by(options_of(frontier)), strict=True):
        entry["pareto"] = better is None
        entry["dominated_by"] = None if better is None else better.name
    for entry in entries:
        del entry["_seeds"]
    return frontier


def _entry(
    point: Point, cells: Sequence[Cell], found: Sequence[Figures], times: Mapping[int, Figures]
) -> dict[str, Any]:
    timed = times.get(point.number, {})
    accuracy = {name: [one["accuracy"][name] for one in found] for name in _ACCURACIES}
    others = {name: [one.get(name) for one in found] for name in _MEANS}
    entry: dict[str, Any] = {
        "point": point.number,
        "changes": list(point.changes),
        "seeds": [cell.run.seed for cell in cells],
        **{name: found[0].get(name) for name in _SAME},
        "accuracy": {name: _mean(values) for name, values in accuracy.items()},
        **{name: _mean(values) for name, values in others.items()},
        "private_ms": _ms(timed, "private"),
        "private_only_ms": _ms(timed, "private_only"),
        "main_only_ms": _ms(timed, "main_only"),
        "speedup": timed.get("speedup"),
        "times": dict(timed) or None,
        "spread": {
            "accuracy": {name: _spread(values) for name, values in accuracy.items()},
            **{name: _spread(values) for name, values in others.items()},
        },
        "cloud_helps": sum(bool(one["cloud_helps"]) for one in found),
        "beats_main_only": sum(bool(one["beats_main_only"]) for one in found),
        "_seeds": accuracy,
    }
    # The design's measure: serialised requests, the handshake included; answers stand in bytes_down.
    entry["bytes_per_record"] = entry["bytes_up"]
    return entry


def _baselines(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Models without a cloud, each once: those of several points that are one model have equal accuracies."""
    found: dict[tuple[Any, ...], list[tuple[dict[str, Any], float | None]]] = {}
    for entry in entries:
        seeds = tuple(entry["seeds"])
        small, whole = entry["_seeds"]["main_only"], entry["_seeds"]["private_only"]
        key = ("main-only", entry["main_only_macs"], entry["main_only_reads"], seeds, tuple(small))
        found.setdefault(key, []).append((entry, entry["main_only_ms"]))
        found.setdefault(
            ("private-only", entry["private_only_macs"], "image", seeds, tuple(whole)), []
        ).append((entry, entry["private_only_ms"]))
    return [
        {
            "method": method,
            "private_macs": macs,
            "reads": reads,
            "accuracy": statistics.mean(values),
            "spread": [min(values), max(values)],
            "private_ms": _mean([ms for _, ms in same]),
            "seeds": list(seeds),
            "points": [entry["point"] for entry, _ in same],
        }
        for (method, macs, reads, seeds, values), same in found.items()
    ]


def _ms(timed: Figures, name: str) -> float | None:
    return timed[name]["median_ms"] if name in timed else None


def _mean(values: Sequence[float | None]) -> float | None:
    """Over the seeds; none where one of them was not measured: a mean of others would be another thing's."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _spread(values: Sequence[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return [min(known), max(known)] if known and len(known) == len(values) else None
