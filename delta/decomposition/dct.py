"""The spatial basis: block DCT, crop and small inverse DCT as one matrix an axis.

An axis of n values is cut into blocks of M. Each block is transformed by the orthonormal DCT-II, its m lowest
frequencies are kept, and an orthonormal inverse DCT of size m turns them back into m values: a low-pass copy
of the block. All three steps are linear, so a block is the m×M matrix `idct_m · dct_M[:m]`, and both axes are
two small matrix products: p = D_h Y D_wᵀ. Source: Niu et al., CVPR 2024 (arXiv 2312.05264), section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from delta.errors import ConfigError

__all__ = ["SpatialBasis", "block_basis", "dct_matrix"]


def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II matrix.

    Args:
        n: size, at least 1.

    Returns:
        `[n, n]` float64; row j holds √((2 − δ_j0)/n) · cos(π j (2i + 1) / 2n).

    Raises:
        ConfigError: n is below 1.
    """
    if n < 1:
        raise ConfigError(f"DCT size {n} is not valid; the smallest is 1")
    frequency = torch.arange(n, dtype=torch.float64)[:, None]
    place = torch.arange(n, dtype=torch.float64)[None, :]
    matrix = torch.cos(math.pi / (2 * n) * frequency * (2 * place + 1)) * math.sqrt(2 / n)
    matrix[0] = math.sqrt(1 / n)
    return matrix


def block_basis(*, size: int, block: int, keep: int) -> Tensor:
    """The spatial basis of one axis.

    Args:
        size: values along the axis.
        block: M, values a block; divides `size`.
        keep: m, values kept a block, 1 ≤ m ≤ M.

    Returns:
        `[size·m/M, size]` float64, block-diagonal, orthonormal rows; the identity where m = M.

    Raises:
        ConfigError: the three do not fit; the message names the nearest valid values.
    """
    if size < 1:
        raise ConfigError(f"spatial size {size} is not valid; the smallest is 1")
    if block < 1 or size % block:
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        below = max((d for d in divisors if d < block), default=None)
        above = min((d for d in divisors if d > block), default=None)
        nearest = " or ".join(str(d) for d in (below, above) if d is not None)
        raise ConfigError(f"block {block} does not divide the spatial size {size}; nearest valid: {nearest}")
    if not 1 <= keep <= block:
        nearest_keep = min(max(keep, 1), block)
        raise ConfigError(f"cannot keep {keep} of a block of {block}; the nearest valid is {nearest_keep}")
    if keep == block:
        return torch.eye(size, dtype=torch.float64)
    one = dct_matrix(keep).T @ dct_matrix(block)[:keep]  # [m, M]
    return torch.kron(torch.eye(size // block, dtype=torch.float64), one)


class SpatialBasis(nn.Module):
    """D_h and D_w for maps of one size.

    The matrices follow from the sizes, so they are kept out of the state dict.

    Args:
        height: h of the maps.
        width: w of the maps.
        block: M, of both axes.
        keep: m, of both axes.

    Raises:
        ConfigError: the sizes do not fit; see `block_basis`.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, *, height: int, width: int, block: int, keep: int) -> None:
        super().__init__()
        block_basis(size=math.gcd(height, width), block=block, keep=keep)  # names a block that fits both
        self.size = (height, width)
        self.height_kept, self.width_kept = height * keep // block, width * keep // block
        self.kept = (self.height_kept, self.width_kept)
        self.is_identity = keep == block
        self.register_buffer("rows", block_basis(size=height, block=block, keep=keep), persistent=False)
        self.register_buffer("columns", block_basis(size=width, block=block, keep=keep), persistent=False)

    def analyse(self, maps: Tensor) -> Tensor:
        """D_h · maps · D_wᵀ: `[b, n, h, w]` to `[b, n, h', w']`."""
        if self.is_identity:
            return maps
        return (self.rows.to(maps.dtype) @ maps) @ self.columns.to(maps.dtype).T

    def synthesise(self, kept: Tensor) -> Tensor:
        """D_hᵀ · kept · D_w: `[b, n, h', w']` to `[b, n, h, w]`."""
        if self.is_identity:
            return kept
        return self.rows.to(kept.dtype).T @ (kept @ self.columns.to(kept.dtype))
