"""Arithmetic that repeats itself: on CUDA the kernels are chosen and summed the same way each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic

__all__ = ["repeatable"]


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Deterministic kernels on CUDA, with a warning where there is none; the CPU has no others.

    cuBLAS also wants `CUBLAS_WORKSPACE_CONFIG`, which `delta.device.device_of` sets.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, and nothing reads it
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
