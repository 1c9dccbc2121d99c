"""Benchmark rows from samples: median and spread, and each ratio within one network, phase and setting."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from delta.bench.cases import INFER, ROUND_TRIP, RUNTIME_METHODS, TRAIN
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
        did not run. `speedup_vs_main_only`: the same against the main-only of the nearest private MACs; none for
        methods that compute nothing on the private side.
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
                "runtime": runtime if contender.method in RUNTIME_METHODS and one.phase == INFER else "eager",
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
        small = [other for other in alike if other["method"] == "main-only"]
        if small and row["private_macs"]:
            nearest = min(small, key=lambda other: abs(math.log(other["private_macs"] / row["private_macs"])))
            row["speedup_vs_main_only"] = nearest["ms_median"] / row["ms_median"]
        else:
            row["speedup_vs_main_only"] = None
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
