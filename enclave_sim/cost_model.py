"""What an enclave would add to a measured private time: paging and transitions. Modelled, nothing is run.

    paged       bytes swapped in one pass over the working set
                low, typical: what lies beyond the protected memory, each page of it once
                high: the whole set, as a least-recently-used cache does with a set swept in order
    paging      ⌈paged / 4096⌉ · cycles a page / clock
    transitions number · cycles a transition / clock

The result stands apart from what was measured (DESIGN invariant I8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from enclave_sim.constants import (
    CLOCK_GHZ,
    NOT_MODELLED,
    PAGE_BYTES,
    PAGE_SWAP_CYCLES,
    PROTECTED_MIB,
    TRANSITION_CYCLES,
    Constant,
)

__all__ = ["Modelled", "Span", "enclave_cost", "paging_ms", "protected_memory", "transitions_of"]

_MIB = 1 << 20
_ENDS = ("low", "typical", "high")


@dataclass(frozen=True)
class Span:
    """A figure at its low, typical and high end."""

    low: float
    typical: float
    high: float

    def to_json(self) -> dict[str, float]:
        """The three ends by name."""
        return {end: getattr(self, end) for end in _ENDS}


@dataclass(frozen=True)
class Modelled:
    """A measured private time, and what an enclave would make of it.

    Attributes:
        measured_ms: as it was given.
        low_ms: measured and modelled together, every constant at its cheapest.
        typical_ms: at typical constants.
        high_ms: every constant at its dearest.
        paging_ms: of these, for swapping pages.
        transitions_ms: of these, for entering and leaving.
        paged_bytes: swapped in one pass.
        working_set_bytes: as it was given.
        transitions: as they were given.
        sensitivity: typical total, ms, with one constant alone at its low and at its high end.
        constants: that were used, by name.
        not_modelled: what comes on top.
    """

    measured_ms: float
    low_ms: float
    typical_ms: float
    high_ms: float
    paging_ms: Span
    transitions_ms: Span
    paged_bytes: Span
    working_set_bytes: int
    transitions: int
    sensitivity: Mapping[str, tuple[float, float]]
    constants: Mapping[str, Constant] = field(repr=False)
    not_modelled: tuple[str, ...] = field(default=NOT_MODELLED, repr=False)

    @property
    def extra_ms(self) -> Span:
        """What comes on top of the measured time."""
        return Span(*(getattr(self, f"{end}_ms") - self.measured_ms for end in _ENDS))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, marked `modelled`, each constant with its source."""
        return {
            "modelled": True,
            "measured_ms": self.measured_ms,
            "low_ms": self.low_ms,
            "typical_ms": self.typical_ms,
            "high_ms": self.high_ms,
            "paging_ms": self.paging_ms.to_json(),
            "transitions_ms": self.transitions_ms.to_json(),
            "paged_bytes": self.paged_bytes.to_json(),
            "working_set_bytes": self.working_set_bytes,
            "transitions": self.transitions,
            "sensitivity_ms": {name: list(ends) for name, ends in self.sensitivity.items()},
            "constants": {name: constant.to_json() for name, constant in self.constants.items()},
            "not_modelled": list(self.not_modelled),
        }


def enclave_cost(
    *, private_ms: float, working_set_bytes: int, transitions: int, memory: str | float = "sgx1-128"
) -> Modelled:
    """Model a private time inside an enclave.

    Args:
        private_ms: measured outside one, for one batch.
        working_set_bytes: weights and the peak of live tensors of that batch.
        transitions: in that time; see `transitions_of`.
        memory: a kind of `PROTECTED_MIB`, or MiB that can be used.

    Raises:
        ValueError: a figure is negative or not finite, or no kind is of that name.
    """
    for name, value in (
        ("private_ms", private_ms),
        ("working_set_bytes", working_set_bytes),
        ("transitions", transitions),
    ):
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
    constants = {
        "protected_mib": protected_memory(memory),
        "page_swap_cycles": PAGE_SWAP_CYCLES,
        "transition_cycles": TRANSITION_CYCLES,
        "clock_ghz": CLOCK_GHZ,
    }

    def parts(ends: Mapping[str, str]) -> tuple[float, float, float]:
        at = {name: float(getattr(constant, ends[name])) for name, constant in constants.items()}
        paged = _paged(working_set_bytes, at["protected_mib"], whole=ends["replacement"] == "high")
        paging = _swap_ms(paged, cycles=at["page_swap_cycles"], ghz=at["clock_ghz"])
        return paged, paging, transitions * at["transition_cycles"] / at["clock_ghz"] / 1e6

    names = [*constants, "replacement"]
    columns = [parts(dict.fromkeys(names, end)) for end in _ENDS]
    paged, paging, crossing = (Span(*values) for values in zip(*columns, strict=True))
    typical = dict.fromkeys(names, "typical")

    def alone(name: str, end: str) -> float:
        _, swaps, calls = parts({**typical, name: end})
        return private_ms + swaps + calls

    return Modelled(
        measured_ms=private_ms,
        low_ms=private_ms + paging.low + crossing.low,
        typical_ms=private_ms + paging.typical + crossing.typical,
        high_ms=private_ms + paging.high + crossing.high,
        paging_ms=paging,
        transitions_ms=crossing,
        paged_bytes=paged,
        working_set_bytes=working_set_bytes,
        transitions=transitions,
        sensitivity={name: (alone(name, "low"), alone(name, "high")) for name in names},
        constants=constants,
    )


def paging_ms(paged_bytes: float) -> Span:
    """Milliseconds to swap so many bytes, a page at a time."""
    return Span(
        *(
            _swap_ms(paged_bytes, cycles=getattr(PAGE_SWAP_CYCLES, end), ghz=getattr(CLOCK_GHZ, end))
            for end in _ENDS
        )
    )


def protected_memory(memory: str | float) -> Constant:
    """The memory of a kind, or of a number of MiB.

    Raises:
        ValueError: no kind is of that name, or the number is not above 0.
    """
    if isinstance(memory, str) and memory in PROTECTED_MIB:
        return PROTECTED_MIB[memory]
    try:
        mib = float(memory)
    except ValueError:
        mib = math.nan
    if not math.isfinite(mib) or mib <= 0:
        raise ValueError(
            f"protected memory {memory!r} is neither of {', '.join(PROTECTED_MIB)} nor a number of MiB above 0"
        )
    return Constant(mib, mib, mib, "MiB", "given by the caller", "high")


def transitions_of(round_trips: int) -> int:
    """Transitions of one call: in and out once, and out to send and out to receive for each round trip."""
    return 2 * round_trips + 1


def _paged(working_set: int, protected_mib: float, *, whole: bool) -> float:
    beyond = max(0.0, working_set - protected_mib * _MIB)
    return float(working_set) if whole and beyond else beyond


def _swap_ms(paged_bytes: float, *, cycles: float, ghz: float) -> float:
    return math.ceil(paged_bytes / PAGE_BYTES) * cycles / ghz / 1e6
