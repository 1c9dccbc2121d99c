"""A batched matrix product in which a record's rounding does not depend on its batch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["record_bmm"]


def record_bmm(left: Tensor, right: Tensor) -> Tensor:
    """`[b or 1, m, c]` or `[m, c]` times `[b, c, n]`, one product a record: `[b, m, n]`.

    A batched product even where the left matrix is shared: folding the batch into one product would copy the
    right side. Matrix libraries hand a batch of one to another kernel, which rounds differently, so a lone
    record is multiplied beside itself: its bits, and with them its release, are those it has in any batch,
    as long as records start at multiples of 64 bytes (kernels choose by alignment too).
    """
    records = max(right.shape[0], left.shape[0] if left.dim() == 3 else 1)
    if records != 1:
        return torch.bmm(left.expand(records, -1, -1), right)
    return torch.bmm(left.expand(2, -1, -1), right.expand(2, -1, -1))[:1]
