"""What a benchmark's private process is told, and what it answers: plain JSON."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from delta.bench.timing import Timed
from delta.config import Strict
from delta.models.runtime import Runtime

__all__ = ["READY", "Link", "PrivateJob", "Subject", "timed_from_json", "timed_to_json"]

READY = "ready"
"""The line by which a private process says that it is warm; it then waits for one on its standard input."""


class Link(Strict):
    """A simulated link: of each direction, 10⁶ bits per second, and milliseconds one way."""

    bandwidth_mbps: float = Field(gt=0)
    delay_ms: float = Field(ge=0)

    def __str__(self) -> str:
        return f"{self.bandwidth_mbps:g} Mbit/s, {self.delay_ms:g} ms"


class Subject(Strict):
    """One contender: its key and the folder of its bundle."""

    key: str
    bundle: Path


class PrivateJob(Strict):
    """One private process of a benchmark.

    Attributes:
        address: of the cloud, HOST:PORT; none where no method has one.
        subjects: in the order in which they take turns.
        batches: records a call.
        threads: of the process.
        cores: that it is held to; none: wherever the system puts it.
        rounds: at most.
        seconds: that one case may take over all rounds.
        link: between the two sides; none: as it is.
        train: whether training steps are timed, too.
        runtime: of the private models that have a choice.
        seed: of the records.
    """

    address: str | None
    subjects: tuple[Subject, ...]
    batches: tuple[int, ...]
    threads: int = Field(ge=1)
    cores: tuple[int, ...] | None = None
    rounds: int = Field(ge=1)
    seconds: float = Field(gt=0)
    link: Link | None = None
    train: bool = True
    runtime: Runtime = "eager"
    seed: int = 0


def timed_to_json(timed: list[Timed]) -> list[dict[str, object]]:
    """Samples as plain JSON."""
    return [vars(one) for one in timed]


def timed_from_json(rows: list[dict[str, object]]) -> list[Timed]:
    """The inverse of `timed_to_json`."""
    return [Timed(**row) for row in rows]  # type: ignore[arg-type]
