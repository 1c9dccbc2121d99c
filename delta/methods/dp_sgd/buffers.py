"""Buffers of a module under DP-SGD: no noise covers them, so what they saw of private records must not stay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["buffers_kept", "buffers_of", "changed_buffer"]

Buffers = dict[tuple[str, str], Tensor]


def buffers_of(module: nn.Module) -> Buffers:
    """Copies of all buffers, by path of the layer and name in it."""
    return {
        (path, name): tensor.detach().clone()
        for path, part in module.named_modules()
        for name, tensor in part._buffers.items()
        if tensor is not None
    }


def changed_buffer(before: Buffers, after: Buffers) -> tuple[str, str] | None:
    """Layer and name of a buffer that differs in any bit, came or went; none where all are as they were."""
    for key in sorted(before.keys() | after.keys()):
        if key not in before or key not in after or not _same(before[key], after[key]):
            return key
    return None


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """However the block ends, every buffer has its old value again, and those that came are gone."""
    before = [
        (
            part,
            [(name, tensor, None if tensor is None else tensor.detach().clone()) for name, tensor in known],
        )
        for part in module.modules()
        for known in (list(part._buffers.items()),)
    ]
    try:
        yield
    finally:
        for part, rows in before:
            part._buffers.clear()
            for name, tensor, value in rows:
                if tensor is not None and value is not None:
                    tensor.data = value  # the same object, whatever it was resized to
                part._buffers[name] = tensor


def _same(a: Tensor, b: Tensor) -> bool:
    """By bits: a NaN is like itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(t.cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))
