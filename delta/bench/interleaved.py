"""Candidates timed in turn on one thread (A B A B …), and compared round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

__all__ = ["Figures", "alternate", "milliseconds", "one_thread", "ratio", "warm_allocator"]

Figures = dict[str, dict[str, float]]
_WARM_BYTES = 31 * 2**20


def alternate(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for done in range(-warmup, rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if done >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """`median_ms`, `min_ms` and `max_ms`."""
    return {
        "median_ms": 1e3 * statistics.median(seconds),
        "min_ms": 1e3 * min(seconds),
        "max_ms": 1e3 * max(seconds),
    }


def ratio(name: str, above: list[float], below: list[float]) -> dict[str, float]:
    """Of the rounds' ratios, the median under `name`, and `name`_min and `name`_max."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {name: statistics.median(ratios), f"{name}_min": min(ratios), f"{name}_max": max(ratios)}


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def warm_allocator() -> None:
    """Keep freed memory in the process.

    glibc gives memory of large tensors back to the system until it has seen one as large freed; a stem then
    takes up to five times as long, page faults alone. One tensor just below its limit of 32 MiB teaches it.
    """
    torch.ones(_WARM_BYTES, dtype=torch.uint8)
