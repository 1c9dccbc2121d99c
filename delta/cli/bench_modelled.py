"""The modelled column of a benchmark: the same rows, with what an enclave would add to the private time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from delta.cli.output import say, table
from delta.errors import ConfigError

if TYPE_CHECKING:
    from delta.bench.rows import Row

__all__ = ["check_enclave", "modelled_rows", "show_modelled"]


def check_enclave(memory: str | None) -> None:
    """Refuse an enclave that nothing is known of.

    Raises:
        ConfigError: the text names those that there are.
    """
    from enclave_sim.cost_model import protected_memory

    if memory is None:
        return
    try:
        protected_memory(memory)
    except ValueError as error:
        raise ConfigError(f"--enclave: {error}") from None


def modelled_rows(rows: Sequence[Row], memory: str) -> list[dict[str, Any]]:
    """What an enclave of that memory would make of each row's private time: modelled, and nowhere mixed in.

    The working set is the private weights once and a record's live tensors for each record of the batch. What a
    training step keeps for its backward is more than that, so that training is left out.
    """
    from enclave_sim.cost_model import enclave_cost, transitions_of

    found = []
    for row in rows:
        if row["phase"] != "infer":
            continue
        working_set = (row["private_weights_mib"] + row["peak_private_mib"] * row["batch"]) * 2**20
        cost = enclave_cost(
            private_ms=row["private_ms"],
            working_set_bytes=round(working_set),
            transitions=transitions_of(round(row["round_trips"])),
            memory=memory,
        )
        names = ("method", "network", "phase", "batch", "threads", "link")
        found.append({**{name: row[name] for name in names}, "modelled": True, **cost.to_json()})
    return found


def show_modelled(rows: Sequence[dict[str, Any]], memory: str) -> None:
    """A table, and where the constants are."""
    table(
        f"modelled, not measured: the private time in an enclave with {memory} of protected memory",
        [
            "method",
            "network",
            "batch",
            "threads",
            "measured private ms",
            "modelled ms (low to high)",
            "paged MiB",
        ],
        [
            [
                row["method"],
                row["network"],
                str(row["batch"]),
                str(row["threads"]),
                f"{row['measured_ms']:.2f}",
                f"{row['typical_ms']:.2f} ({row['low_ms']:.2f} to {row['high_ms']:.2f})",
                f"{row['paged_bytes']['typical'] / 2**20:.1f}",
            ]
            for row in rows
        ],
    )
    say(
        "constants, their ranges and sources: enclave_sim/constants.py; the enclave itself is not simulated here"
    )
