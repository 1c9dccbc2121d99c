"""What an enclave costs, as published: every constant of the cost model, with source and confidence.

`low`, `typical` and `high` go with the cost: `low` is the cheapest that a source or, where none gives a range,
a stated assumption allows. Confidence: `high` was read in the source, `medium` and `low` come from memory of it,
from a secondary source, or by a division of other figures.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = [
    "CLOCK_GHZ",
    "NOT_MODELLED",
    "PAGE_BYTES",
    "PAGE_SWAP_CYCLES",
    "PROTECTED_MIB",
    "TRANSITION_CYCLES",
    "Constant",
]

PAGE_BYTES = 4096
"""Of a page of protected memory."""


@dataclass(frozen=True)
class Constant:
    """A constant of another's making, as a range.

    Attributes:
        low: where the cost is least.
        typical: in between.
        high: where the cost is greatest; below `low` for what costs less the more there is of it.
        unit: of all three.
        source: who says so.
        confidence: how far the source carries the typical value.
    """

    low: float
    typical: float
    high: float
    unit: str
    source: str
    confidence: Literal["high", "medium", "low"]

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


PAGE_SWAP_CYCLES = Constant(
    20_000,
    40_000,
    60_000,
    "cycles a page of 4 KiB",
    "VAULT (Taassori et al., ASPLOS 2018), abstract: about 40K cycles a page swap; half and one and a half of it "
    "are an assumption",
    "high",
)

CLOCK_GHZ = Constant(
    5.0,
    3.7,
    2.6,
    "GHz",
    "Xeon E-2288G, said to be the machine of the Delta paper: 3.7 GHz base and 5.0 GHz turbo (from memory); "
    "2.6 GHz for a slower server is an assumption",
    "low",
)

TRANSITION_CYCLES = Constant(
    8_300,
    11_300,
    14_200,
    "cycles a transition",
    "HotCalls (Weisse et al., ISCA 2017): an ECALL 8,640 warm to 14,170 cold, an OCALL 8,314 to 14,160 (from "
    "memory); the typical value is the middle; sgx-perf has 5,850 to 13,100 with the microcode",
    "medium",
)

_SGX1 = (
    "VAULT and Intel's article 000059614: 128 MB of protected memory, of which about 90 MB, 93 MiB at most, can be "
    "used; the high end is 90 MB"
)

PROTECTED_MIB = {
    "sgx1-128": Constant(93.0, 93.0, 90e6 / 2**20, "MiB", _SGX1, "high"),
    "sgx1-256": Constant(
        186.0,
        186.0,
        180e6 / 2**20,
        "MiB",
        "Intel's article 000059614: up to 256 MB on Xeons before the third generation; the share that can be used is "
        "taken from that of 128 MB",
        "low",
    ),
    "sgx2-512g": Constant(
        512 * 1024.0,
        512 * 1024.0,
        512 * 1024.0,
        "MiB",
        "Intel's article 000059614: 512 GB a socket on third-generation Xeons; taken as usable whole",
        "medium",
    ),
}
"""Memory that can be used inside, by kind."""

NOT_MODELLED = (
    "the slowdown of cache misses by memory encryption and integrity trees (1.1 to 1.2 times is told of common loads)",
    "transitions beyond those counted, such as system calls, exceptions and the page faults' own",
    "growing an SGX2 enclave at run time, start-up, attestation and sealing",
)
"""What an enclave costs beside, of which no figure is part of the model."""
