"""What cryptographic two-party inference of a network would cost: modelled from counts, nothing is run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from delta.models.activations import NonLinearWork, count_nonlinear
from delta.models.macs import count_macs
from delta.models.mpc_constants import PROTOCOLS, Constant, Protocol
from delta.models.mpc_table import render_mpc

__all__ = ["MpcPlan", "ProtocolCost", "plan_mpc"]

_INPUT_AND_OUTPUT = 1
_NOTES = (
    "both sides are semi-honest; the server keeps its weights, the client its record and the answer",
    "a comparison of two values costs what a ReLU costs; batch normalisation and average pooling are part of the "
    "linear layers",
    "rounds hold one more: the masked record goes, and the share of the logits comes back",
    "no time is modelled: neither computing nor the link",
)


@dataclass(frozen=True)
class ProtocolCost:
    """One record under one protocol.

    Attributes:
        name: key of the protocol.
        title: in tables.
        online_bytes: of its comparisons, both directions; none if no figure is known.
        offline_bytes: that one party must have stored before; none if no figure is known.
        rounds: sequential round trips or simultaneous exchanges, from the record to the logits.
        bounds: by figure, `about` or `at least`.
        sources: by figure, the constant that it was made with.
        assumptions: one sentence each.
    """

    name: str
    title: str
    online_bytes: int | None
    offline_bytes: int | None
    rounds: int
    bounds: dict[str, str]
    sources: dict[str, Constant]
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class MpcPlan:
    """Modelled costs of one record.

    Attributes:
        work: non-linear operations, counted.
        macs: of all linear layers, counted.
        protocols: their costs.
        notes: what holds for all of them.
    """

    work: NonLinearWork
    macs: int
    protocols: tuple[ProtocolCost, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return render_mpc(self)

    def to_json(self) -> dict[str, Any]:
        """The figures by name, plain JSON: what was counted, what was modelled, what was not."""
        work = asdict(self.work)
        unmodelled = [dict(row) for row in work.pop("not_modelled")]
        return {
            "modelled": True,
            "complete": not unmodelled,
            "counted": {**work, "comparisons": self.work.comparisons, "macs": self.macs},
            "protocols": [asdict(cost) | {"assumptions": list(cost.assumptions)} for cost in self.protocols],
            "not_modelled": unmodelled,
            "notes": list(self.notes),
        }


def plan_mpc(model: nn.Module, example: Tensor) -> MpcPlan:
    """Count a network's comparisons and MACs, and model what they cost under each protocol.

    Args:
        model: the unsplit network; no weights are needed.
        example: records `[n, channels, height, width]`; one is counted.

    Raises:
        ModelError: the model does not run on such records.
    """
    work, macs = count_nonlinear(model, example), count_macs(model, example)
    linear = (
        f"not modelled: how the {work.linear_layers} linear layers ({macs:,} MACs) are preprocessed under "
        "homomorphic encryption; its bytes follow from ring size and packing, not from MACs, and come on top of "
        "the offline figures"
    )
    notes = [linear, *_NOTES]
    if work.not_modelled:
        names = ", ".join(f"{row.name} ({row.values:,} values in {row.calls})" for row in work.not_modelled)
        notes.insert(
            0, f"not modelled: {names}; their bytes and rounds come on top, so every figure is a lower bound"
        )
    return MpcPlan(work, macs, tuple(_cost(protocol, work) for protocol in PROTOCOLS), tuple(notes))


def _cost(protocol: Protocol, work: NonLinearWork) -> ProtocolCost:
    layers = work.steps if protocol.stepwise else work.layers
    constants = {
        "online_bytes": protocol.online,
        "offline_bytes": protocol.offline,
        "rounds": protocol.rounds,
    }
    sources = {name: constant for name, constant in constants.items() if constant is not None}
    return ProtocolCost(
        name=protocol.name,
        title=protocol.title,
        online_bytes=_bytes(protocol.online, work),
        offline_bytes=_bytes(protocol.offline, work),
        rounds=layers * int(protocol.rounds.value) + _INPUT_AND_OUTPUT,
        bounds={name: "at least" if work.not_modelled else c.bound for name, c in sources.items()},
        sources=sources,
        assumptions=protocol.assumptions,
    )


def _bytes(constant: Constant | None, work: NonLinearWork) -> int | None:
    return None if constant is None else round(constant.value * work.comparisons)
