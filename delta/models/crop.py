"""Which block DCT and crop fit an intermediate representation."""

from __future__ import annotations

import math

from delta.decomposition.dct import block_basis

__all__ = ["BLOCKS", "crop_for", "nearest_crop"]

BLOCKS = (16, 14, 8, 7, 4, 2)
"""Block sizes tried in turn where none is given: 16 at 32×32 and 14 at 56×56 are the paper's."""


def crop_for(
    ir_shape: tuple[int, int, int], *, block: int | None = None, keep: int | None = None
) -> tuple[int, int]:
    """(M, m) of the block DCT; without M the largest of `BLOCKS` that divides the IR, without m half of M.

    An IR that no block divides is not cropped: (1, 1).

    Raises:
        ConfigError: M does not divide height and width, or m is not within 1 … M; with the nearest valid.
    """
    _, h, w = ir_shape
    if block is None:
        block = next((size for size in BLOCKS if h % size == w % size == 0), 1)
    if keep is None:
        keep = max(block // 2, 1)
    block_basis(size=math.gcd(h, w), block=block, keep=keep)
    return block, keep


def nearest_crop(ir_shape: tuple[int, int, int], *, block: int, keep: int) -> tuple[int, int]:
    """The largest block up to M that divides the IR, and the kept size nearest to the same share of it."""
    _, h, w = ir_shape
    fitting = max(size for size in range(1, max(block, 1) + 1) if h % size == w % size == 0)
    return fitting, min(max(round(fitting * keep / block), 1), fitting)
