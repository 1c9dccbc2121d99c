"""Modelled costs of two-party inference as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from delta.models.plan_table import table

if TYPE_CHECKING:
    from delta.models.mpc import MpcPlan, ProtocolCost

__all__ = ["byte_size", "render_mpc"]


def render_mpc(plan: MpcPlan) -> str:
    """What was counted, a table of protocols, notes, and the source of each constant."""
    work = plan.work
    rows = [["modelled: one record under", "online", "offline, stored", "rounds"]]
    rows += [_row(cost) for cost in plan.protocols]
    lines = [
        "Two-party inference of the whole network: modelled, nothing was run",
        f"counted: {work.relus:,} ReLUs and {work.maxima:,} comparisons of maxima in {work.layers} layers, "
        f"{plan.macs:,} MACs in {work.linear_layers} linear layers",
        "",
        table(rows),
        "",
        *(f"note: {note}" for note in plan.notes),
    ]
    for cost in plan.protocols:
        lines += ["", cost.title]
        lines += [
            f"  {name.replace('_', ' ')}: {constant.value:,.6g} {constant.unit} ({constant.confidence} confidence). "
            f"{constant.source}"
            for name, constant in cost.sources.items()
        ]
        lines += [f"  assumed: {sentence}" for sentence in cost.assumptions]
    return "\n".join(lines)


def byte_size(value: float) -> str:
    """Bytes with a decimal unit: `557 MB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _row(cost: ProtocolCost) -> list[str]:
    cells = [cost.title]
    for name, value in (("online_bytes", cost.online_bytes), ("offline_bytes", cost.offline_bytes)):
        cells.append("not known" if value is None else _bounded(byte_size(value), cost.bounds[name]))
    return [*cells, _bounded(str(cost.rounds), cost.bounds["rounds"])]


def _bounded(text: str, bound: str) -> str:
    return f"≥ {text}" if bound == "at least" else text
