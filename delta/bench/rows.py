"""Benchmark rows from samples: median and spread, and each ratio within one network, phase and setting."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from delta.bench.cases import INFER, ROUND_TRIP, RUNTIME_METHODS, TRAIN, UPLOAD
from delta.bench.contenders import BASELINE, Contender
from delta.bench.timing import Timed
from delta.methods.base import COST_FIELDS
from delta.models.memory import tensor_bytes

__all__ = ["Row", "rows_of"]

Row = dict[str, Any]
"""One method, phase and setting; see `rows_of`."""

_PHASES = {INFER: INFER, ROUND_TRIP: ROUND_TRIP, UPLOAD: UPLOAD}
# Every other phase is a way to train, and compared with a step that trains the whole model.


def rows_of(
    timed: Iterable[Timed],
    *,
    contenders: Mapping[str, Contender],
    threads: int,
    link: str,
    runtime: str = "eager",
) -> list[Row]:
    """Rows of one private process.

    Args:
        timed: samples by contender and phase.
        contenders: by key.
        threads: of the private side.
        link: as rows name it; `none` without a shaped link.
        runtime: of inference with the private models that have a choice.

    Returns:
        `method`, `network`, `phase`, `batch`, `threads`, `link`, `runtime`, `samples`, `ms_median`, `ms_min`,
        `ms_max`, the medians of the fields of `Cost`, `private_weights_mib`, `extras` (medians of what the method
        reports beside), and `speedup_vs_private_only`: the baseline's median over this one's, of the same network,
        batch and phase (every way to train against a step that trains the whole model); none where the baseline
        did not run. `speedup_vs_main_only`, of Delta's rows: the same against the main-only of the nearest
        private MACs, `main_only_macs`. `breakdown`, of Delta's inference: see `_breakdown`. Fields that nobody
        measured are none.
    """
    found: list[Row] = []
    for one in timed:
        contender = contenders[one.key]
        found.append(
            {
                "key": one.key,
                "method": contender.method,
                "network": contender.network,
                "phase": one.phase,
                "batch": one.batch,
                "threads": threads,
                "link": link,
                "runtime": runtime if contender.method in RUNTIME_METHODS and one.phase == INFER else "eager",
                "samples": len(one.samples),
                **_spread([sample["ms"] for sample in one.samples]),
                **{name: _median([sample[name] for sample in one.samples]) for name in COST_FIELDS},
                "private_weights_mib": tensor_bytes(contender.bundle.private.values()) / 2**20,
                "extras": _extras(one.samples),
                "timeline": _typical(one.samples).get("timeline"),
            }
        )
    for row in found:
        alike = [other for other in found if _setting(other) == _setting(row)]
        baseline = [other["ms_median"] for other in alike if other["method"] == BASELINE]
        row["speedup_vs_private_only"] = baseline[0] / row["ms_median"] if baseline else None
        row["speedup_vs_main_only"] = row["main_only_macs"] = None
        small = [other for other in alike if other["method"] == "main-only"]
        if row["method"] == "delta" and small:
            nearest = min(small, key=lambda other: abs(math.log(other["private_macs"] / row["private_macs"])))
            row["speedup_vs_main_only"] = nearest["ms_median"] / row["ms_median"]
            row["main_only_macs"] = nearest["private_macs"]
        if row["timeline"]:
            way = [o["ms_median"] for o in _way_of(found, row)]
            row["breakdown"] = _breakdown(row, transfer_ms=way[0] if way else None)
    return found


def _way_of(rows: Sequence[Row], row: Row) -> list[Row]:
    """The round trips of the way that belongs to a row of Delta."""
    same = (row["network"], row["batch"])
    return [
        other
        for other in rows
        if other["key"] == f"{row['key']}-way" and (other["network"], other["batch"]) == same
    ]


def _breakdown(row: Row, *, transfer_ms: float | None) -> dict[str, float | None]:
    """Where the milliseconds of one inference of Delta went: the typical sample's.

    `private`: its own steps; `wait`: of its wall time, for the cloud; `answer`: from sending to the answer, made up of
    `cloud` (as the cloud says), `transfer` (a round trip of the same bytes to a model that costs nothing, measured
    apart) and `queue` (the rest, at least 0); `wall_over_private`: wall time over the private steps.
    """
    spans = {(event["lane"], event["name"]): event["end_ms"] - event["start_ms"] for event in row["timeline"]}
    private = sum(ms for (lane, name), ms in spans.items() if lane == "private" and name != "wait")
    wait = spans.get(("private", "wait"), 0.0)
    answer = sum(ms for (lane, _), ms in spans.items() if lane == "cloud")
    queue = None if transfer_ms is None else max(0.0, answer - transfer_ms - row["cloud_ms"])
    return {
        "private": private,
        "wait": wait,
        "answer": answer,
        "cloud": row["cloud_ms"],
        "transfer": transfer_ms,
        "queue": queue,
        "wall_over_private": (private + wait) / private,
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _setting(row: Row) -> tuple[Any, ...]:
    return (row["network"], _PHASES.get(row["phase"], TRAIN), row["batch"])


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"ms_median": statistics.median(values), "ms_min": min(values), "ms_max": max(values)}


def _extras(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = sorted({name for sample in samples for name in sample.get("extras", {})})
    return {
        name: statistics.median(s["extras"][name] for s in samples if name in s.get("extras", {}))
        for name in names
    }


def _typical(samples: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The sample nearest to the median."""
    median = statistics.median(sample["ms"] for sample in samples)
    return min(samples, key=lambda sample: abs(sample["ms"] - median))
