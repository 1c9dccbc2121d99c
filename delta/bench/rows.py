"""Benchmark rows from samples: median and spread, and each ratio within one network, phase and setting."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from delta.bench.cases import INFER, ROUND_TRIP, TRAIN
from delta.bench.contenders import BASELINE, Contender
from delta.bench.timing import Timed
from delta.methods.base import COST_FIELDS
from delta.models.memory import tensor_bytes

__all__ = ["Row", "rows_of"]

Row = dict[str, Any]
"""One method, phase and setting; see `rows_of`."""

_PHASES = {INFER: INFER, ROUND_TRIP: ROUND_TRIP}
# Every other phase is a way to train, and compared with a step that trains the whole model.


def rows_of(
    timed: Iterable[Timed],
    *,
    contenders: Mapping[str, Contender],
    threads: int,
    link: str,
) -> list[Row]:
    """Rows of one private process.

    Args:
        timed: samples by contender and phase.
        contenders: by key.
        threads: of the private side.
        link: as rows name it; `none` without a shaped link.

    Returns:
        `method`, `network`, `phase`, `batch`, `threads`, `link`, `samples`, `ms_median`, `ms_min`, `ms_max`, the
        medians of the fields of `Cost`, `private_weights_mib`, `extras` (medians of what the method reports
        beside), and `speedup_vs_private_only`: the baseline's median over this one's, of the same network, batch
        and phase (every way to train against a step that trains the whole model); none where the baseline did
        not run.
        `speedup_vs_main_only`: the same against main-only of no more private MACs.
    """
    found = []
    for one in timed:
        contender = contenders[one.key]
        found.append(
            {
                "method": contender.method,
                "network": contender.network,
                "phase": one.phase,
                "batch": one.batch,
                "threads": threads,
                "link": link,
                "samples": len(one.samples),
                **_spread([sample["ms"] for sample in one.samples]),
                **{name: statistics.median(s[name] for s in one.samples) for name in COST_FIELDS},
                "private_weights_mib": tensor_bytes(contender.bundle.private.values()) / 2**20,
                "extras": _extras(one.samples),
                "timeline": _typical(one.samples).get("timeline"),
            }
        )
    for row in found:
        alike = [other for other in found if _setting(other) == _setting(row)]
        baseline = [other["ms_median"] for other in alike if other["method"] == BASELINE]
        row["speedup_vs_private_only"] = baseline[0] / row["ms_median"] if baseline else None
        small = [o for o in alike if o["method"] == "main-only" and o["private_macs"] <= row["private_macs"]]
        best = max(small, key=lambda other: other["private_macs"], default=None)
        row["speedup_vs_main_only"] = None if best is None else best["ms_median"] / row["ms_median"]
    return found


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
