"""Plans, sweeps and obstacles as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from delta.models.obstacle import Obstacle
    from delta.models.plan import Plan
    from delta.models.sweep import SweepRow

__all__ = ["render_obstacles", "render_plan", "render_sweep", "table"]

_PARTS = (
    ("backbone", "private: backbone"),
    ("decomposition", "private: decomposition and message"),
    ("main", "private: main model"),
    ("cloud", "cloud: adapter and body"),
    ("whole", "the unsplit model"),
)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as aligned columns, the first row being the head; figures to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def render_plan(plan: Plan) -> str:
    """A plan as text: the parts' MACs and parameters, bytes, memory, privacy, notes."""
    model, settings = plan.model, plan.settings
    rows = [["part", "MACs/record", "parameters"]]
    for name, label in _PARTS:
        rows.append([label, f"{plan.macs[name]:,}", f"{plan.params[name]:,}" if name in plan.params else ""])
    share = 100 * plan.private_macs / max(plan.macs["whole"], 1)
    lines = [
        f"{model['target'] or 'model'} split at {model['at']}: record {_x(model['input_shape'])}, "
        f"IR {_x(model['ir_shape'])}, {model['classes']} classes",
        f"{settings.basis} rank {settings.rank}, DCT {settings.block}:{settings.keep}, "
        f"offload {settings.offload}, message {settings.message} {_x(plan.shapes['message'])}"
        f"{f' (stride {settings.message_stride})' if settings.message_stride > 1 else ''}, "
        + (f"layout {settings.layout}, " if settings.layout != "kept" else "")
        + f"main model {settings.main_layout}",
        "",
        table(rows),
        "",
        f"private MACs     {plan.private_macs:,} a record, {share:.1f} % of the whole model",
        f"slides' figures  SVD {plan.macs['svd']:,}, DCT {plan.macs['dct']:,}",
        f"bytes a record   {plan.bytes_per_record['up']} up, {plan.bytes_per_record['down']} down",
        f"private memory   {plan.peak_private_mib:.2f} MiB peak of live tensors, and "
        f"{plan.private_weights_mib:.2f} MiB of weights",
    ]
    if plan.privacy is not None:
        privacy = plan.privacy
        lines.append(
            f"privacy ceiling  {privacy['ceiling_bits']:.2g} bits a release (μ = {privacy['mu']:.3g}, "
            f"ε = {privacy['epsilon']:g}, δ = {privacy['delta']:g})"
        )
    return "\n".join([*lines, "", *(f"note: {note}" for note in plan.notes)])


def render_sweep(rows: Sequence[SweepRow]) -> str:
    """Split points as text, in the order given."""
    head = ["split at", "IR", "DCT", "rank", "private MACs", "bytes up", "energy kept"]
    body = [
        [
            row.at,
            _x(row.ir_shape),
            f"{row.block}:{row.keep}",
            str(row.rank),
            f"{row.private_macs:,}",
            str(row.bytes_up),
            f"{100 * row.energy_kept:.1f} %",
        ]
        for row in rows
    ]
    return table([head, *body])


def render_obstacles(obstacles: Sequence[Obstacle]) -> str:
    """Obstacles as text, one a paragraph; a single line if there are none."""
    if not obstacles:
        return "no obstacles"
    return "\n".join(f"{i}. {o.where}: {o.reason}\n   mend: {o.mend}" for i, o in enumerate(obstacles, 1))


def _x(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)
