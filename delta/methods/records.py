"""Records as every private half takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from delta.errors import InputError

__all__ = ["checked_labels", "checked_records", "dense_records"]


def dense_records(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Records `[n, *shape]` in float32, as the modules are.

    Raises:
        InputError: another shape, none at all, or no dense floating tensor.
    """
    fits = x.dim() == 1 + len(shape) and tuple(x.shape[1:]) == tuple(shape) and len(x) > 0
    if not fits or not x.is_floating_point() or x.layout != torch.strided:
        kind = str(x.dtype).removeprefix("torch.")
        raise InputError(
            f"expected floating records [n, {', '.join(map(str, shape))}], n ≥ 1, got {kind}{list(x.shape)}"
        )
    return x.to(torch.float32)


def checked_records(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Records `[n, *shape]` in float32, detached and finite.

    Raises:
        InputError: as `dense_records`, or a value is NaN or infinite.
    """
    x = dense_records(x, shape).detach()
    if not bool(torch.isfinite(x).all()):
        raise InputError("a record holds NaN or infinite values; clean the data first")
    return x


def checked_labels(y: Tensor, *, records: int, classes: int) -> Tensor:
    """Labels `[records]` as int64.

    Raises:
        InputError: another shape or type, or a class that there is not.
    """
    if y.shape != (records,) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        kind = str(y.dtype).removeprefix("torch.")
        raise InputError(f"expected integer labels [{records}], got {kind}{list(y.shape)}")
    y = y.to(torch.int64)
    if not bool(((y >= 0) & (y < classes)).all()):
        raise InputError(f"a label is outside of 0 to {classes - 1}")
    return y
