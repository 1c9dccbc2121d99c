"""What two-party protocols cost, as published: the only constants behind `delta plan --mpc`.

None of these protocols is run here. Each constant says where it comes from and how far it can be trusted:
`high` was read in the source or follows from it by a division, `medium` and `low` follow from how a protocol
is described, not from a figure in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["PROTOCOLS", "RESNET32_RELUS", "Constant", "Protocol"]

RESNET32_RELUS = 303_104
"""ReLUs of ResNet-32 on a 3×32×32 record: 11 layers of 16×32×32, 10 of 32×16×16 and 10 of 64×8×8."""


@dataclass(frozen=True)
class Constant:
    """A number of another's making.

    Attributes:
        value: in `unit`.
        unit: of the value.
        bound: whether the true figure is near the value or, at the least, the value.
        source: who says so, and what was divided by what.
        confidence: how far the source carries the value.
    """

    value: float
    unit: str
    source: str
    confidence: Literal["high", "medium", "low"]
    bound: Literal["about", "at least"] = "about"


@dataclass(frozen=True)
class Protocol:
    """What a protocol costs for one comparison and for one layer of them.

    Attributes:
        name: key in the JSON.
        title: in tables.
        online: bytes between the parties for a comparison, once the record is there; none if no figure is known.
        offline: bytes that one party must have stored for a comparison of one inference; none if not known.
        rounds: a layer's sequential round trips, or simultaneous exchanges.
        stepwise: a maximum over w is a tree of comparisons, each step with rounds of its own; else one layer.
        assumptions: what the model takes for granted, one sentence each.
    """

    name: str
    title: str
    online: Constant | None
    offline: Constant | None
    rounds: Constant
    stepwise: bool
    assumptions: tuple[str, ...]


_TABULA = "Tabula (Lam et al., TMLR 2024, arXiv 2203.02833v2), abstract"
_CIRCA = "Circa (Ghodsi et al., NeurIPS 2021, arXiv 2106.08475)"
_TREE = "a maximum of two values is b + ReLU(a - b), and a maximum over w a tree of such"
_DELPHI = "Delphi (Mishra et al., USENIX Security 2020)"

_GARBLED_ONLINE = Constant(
    1_000,
    "bytes per comparison",
    f"{_TABULA}: more than 300 MB of communication for ResNet-32 by standard garbled circuits, divided by its "
    f"{RESNET32_RELUS:,} ReLUs: 990 bytes, rounded",
    "high",
)
_GARBLED_OFFLINE = Constant(
    16_500,
    "bytes per comparison",
    f"{_TABULA}: around 5 GB of preprocessing storage for ResNet-32, divided by its {RESNET32_RELUS:,} ReLUs: "
    "16,496 bytes, rounded; about 17.5 KB is told of Delphi (unverified)",
    "high",
)

PROTOCOLS = (
    Protocol(
        "garbled_circuits",
        "garbled circuits",
        _GARBLED_ONLINE,
        _GARBLED_OFFLINE,
        Constant(
            1,
            "per layer",
            f"derived from the online phase of {_DELPHI}: labels go out, masked results come back",
            "medium",
        ),
        stepwise=False,
        assumptions=(
            "circuits are garbled and sent before the record is there, fresh ones for each inference",
            "a maximum over w is one circuit",
            "online bytes are those of a whole inference of ResNet-32 divided by its ReLUs: what its linear "
            "layers send online is in them, in that network's proportion",
        ),
    ),
    Protocol(
        "circa",
        "garbled signs (Circa)",
        None,
        Constant(
            _GARBLED_OFFLINE.value / 4.7,
            "bytes per comparison",
            f"{_CIRCA}, abstract: up to 4.7 times less storage than its baseline, here taken of the garbled "
            "circuits above",
            "medium",
            "at least",
        ),
        Constant(
            2,
            "per layer",
            f"derived from {_CIRCA}: a garbled sign, then a product by multiplication triples",
            "low",
        ),
        stepwise=True,
        assumptions=(
            "no figure of its online bytes was read in a source: none is given",
            "4.7 is the best case of its paper; its ReLUs err at random for small values",
            _TREE,
        ),
    ),
    Protocol(
        "lookup_tables",
        "lookup tables (Tabula)",
        Constant(2, "bytes per comparison", f"{_TABULA}: twice the bits of an 8-bit input", "high"),
        Constant(
            256,
            "bytes per comparison",
            "derived: 2^8 entries of no less than one byte for each party; the abstract says, of all storage, "
            "within a factor of 2 of garbled circuits for 8-bit inputs, which may be far more",
            "low",
            "at least",
        ),
        Constant(1, "per layer", f"{_TABULA}: a single round for a table of one operand", "high"),
        stepwise=True,
        assumptions=(
            "activations are quantised to 8 bits",
            "a table is used once: storage is for one inference; how both parties get their tables is not modelled",
            _TREE,
        ),
    ),
)
