"""Timing of many cases in turn: A B C A B C, so that whatever the machine does meanwhile meets all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from delta.bench.cases import Case, Sample

__all__ = ["Timed", "time_in_turn"]

_LEAST = 3
"""Samples that every case gives, whatever it takes: a spread needs so many."""

_SHORT_MS = 1000.0
"""A case below it runs twice a round, and the second time counts."""


@dataclass
class Timed:
    """A case's samples.

    Attributes:
        key: of the contender.
        phase: of the case.
        batch: records a call.
        samples: one a round in which it took part.
    """

    key: str
    phase: str
    batch: int
    samples: list[Sample] = field(default_factory=list)


def time_in_turn(
    cases: Sequence[tuple[Timed, Case]],
    *,
    rounds: int,
    seconds: float,
    warm_up: int = 2,
    told: Callable[[str], None] = lambda _: None,
    ready: Callable[[], None] = lambda: None,
) -> list[Timed]:
    """Run every case in each round; one that has taken its seconds sits out the rounds after its third.

    What is short runs twice, and counts once: warm, as in a service.

    Args:
        cases: with where their samples go.
        rounds: at most.
        seconds: that one case may take over all rounds, warm-up apart.
        warm_up: runs of each case before the first round.
        told: of each round.
        ready: called between warm-up and first round.
    """
    for number in range(warm_up):
        for timed, case in cases:
            told(f"warm-up {number + 1}/{warm_up}: {timed.key}, {timed.phase}, batch {timed.batch}")
            case.run()
    ready()
    spent, quick = [0.0] * len(cases), [True] * len(cases)
    for number in range(rounds):
        told(f"round {number + 1}/{rounds}")
        gc.collect()
        gc.disable()
        try:
            for index, (timed, case) in enumerate(cases):
                if spent[index] > seconds and number >= _LEAST:
                    continue
                started = time.perf_counter()
                if quick[index]:
                    case.run()  # a short call would pay for what the case before it has left in the caches
                timed.samples.append(case.run())
                spent[index] += time.perf_counter() - started
                quick[index] = timed.samples[-1]["ms"] < _SHORT_MS
        finally:
            gc.enable()
    return [timed for timed, _ in cases]
