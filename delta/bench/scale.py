"""`delta bench scale`: how a cost grows with the batch, the image, the rank, and the clients at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from delta.bench.contenders import Setup
from delta.bench.latency import Launchers, Schedule, run_latency
from delta.bench.networks import contenders_of
from delta.bench.rows import Row

__all__ = ["AXES", "Axis", "run_scale"]

Axis = Literal["batch", "image", "rank", "clients"]
AXES: dict[Axis, tuple[int, ...]] = {
    "batch": (1, 4, 16, 64),
    "image": (16, 32, 64),
    "rank": (1, 2, 4, 8, 16),
    "clients": (1, 2, 4, 8),
}
"""What is varied, and over which values unless told otherwise."""


def run_scale(
    axis: Axis,
    values: Sequence[int],
    *,
    size: int,
    setup_of: Callable[[int], Setup],
    methods: Sequence[str],
    schedule: Schedule,
    launchers: Launchers,
    available: Sequence[int],
    told: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Rows as of `run_latency`, each with the value of its `axis`.

    Args:
        axis: what is varied.
        values: its values.
        size: height and width of a record, where it is not varied.
        setup_of: the network for records of that size.
        methods: registry names.
        schedule: what stays the same.
        launchers: of the processes.
        available: cores of this machine.
        told: what happens, a line each.

    Raises:
        ModelError: a method cannot run a network of that size.
    """
    rows: list[Row] = []
    for value in values if axis != "batch" else (0,):
        chosen = setup_of(value if axis == "image" else size)
        if axis == "rank":
            chosen = replace(chosen, rank=value)
        changed = replace(schedule, batches=tuple(values)) if axis == "batch" else schedule
        if axis == "clients":
            changed = replace(changed, clients=value)
        told(f"{axis}: {value}" if value else f"{axis}: {', '.join(map(str, values))}")
        found = run_latency(
            contenders_of(chosen, methods), changed, launchers, available=available, told=told
        )
        for row in found:
            row[axis] = row["batch"] if axis == "batch" else value
            row["records_per_s"] = 1e3 * row["batch"] / row["ms_median"] * (changed.clients or 1)
        rows += found
    return rows
