"""The prime field, and arithmetic in it that float64 carries out exactly.

Field elements are integers in [0, p), held as int32 where they travel or wait and as float64 where they are
multiplied: products and sums of integers are exact in float64, in whatever order they are added up, as long as
no partial sum reaches 2⁵³ in magnitude.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = [
    "EXACT",
    "LIMB",
    "PRIME",
    "centred",
    "column_blocks",
    "half_of",
    "limbs",
    "product",
    "reduce_",
    "weighted_sum",
]

PRIME = 2**24 - 3
"""p: the largest prime below 2²⁴."""
EXACT = 2**53
"""Integers of smaller magnitude are float64 numbers."""
LIMB = 2**12
"""An element is high·LIMB + low, both below LIMB: a product of a limb and an element stays below 2³⁶."""
_BLOCK = 2**16
"""Elements that are worked on at a time, so that intermediate results stay in a core's cache."""


def half_of(prime: int) -> int:
    """(p − 1)/2: what a signed integer may reach and still be told from its residue."""
    return (prime - 1) // 2


def centred(x: Tensor, prime: int = PRIME) -> Tensor:
    """Integers of any size and sign → the residues in [−(p−1)/2, (p−1)/2], in the same integer type."""
    residue = torch.remainder(x, prime)
    return torch.where(residue > half_of(prime), residue - prime, residue)


def reduce_(x: Tensor, prime: int = PRIME) -> Tensor:
    """Integers in float64, below 2⁵³ − p in magnitude → their residues in [0, p), in place.

    Exact: with x = q·p + j and 0 ≤ j < p, the rounding error of x/p is at most 2⁻⁵³·|x|/p < 1/p, too small to
    carry the quotient past an integer, so its floor is q; q·p and the difference are integers below 2⁵³.
    That takes one correctly rounded division. By a number of the host, a CUDA kernel may multiply by 1/p instead,
    two roundings, for which the argument does not hold for every p: so p is a tensor where x is.
    """
    return x.sub_(torch.div(x, x.new_full((), prime)).floor_().mul_(prime))


def limbs(x: Tensor, *, dim: int) -> Tensor:
    """Elements in float64 → their high and low limbs, one after the other along `dim`."""
    high = torch.floor(x / LIMB)
    return torch.cat([high, x - high * LIMB], dim=dim)


def product(left: Tensor, right: Tensor, *, largest: int, prime: int = PRIME) -> Tensor:
    """The matrix product mod p, however many products there are in a sum: they are added up in parts.

    Args:
        left: integers in float64, `[…, rows, n]`.
        right: integers in float64, `[…, n, columns]`.
        largest: that the magnitude of no product exceeds, at least 1.
        prime: p.

    Returns:
        Elements in float64, `[…, rows, columns]`.
    """
    at_once = max(1, (EXACT - 2 * prime) // largest)  # so many products, and a residue, stay below 2⁵³ − p
    total = reduce_(left[..., :at_once] @ right[..., :at_once, :], prime)
    for start in range(at_once, right.shape[-2], at_once):
        part = slice(start, start + at_once)
        reduce_(total.add_(left[..., part] @ right[..., part, :]), prime)
    return total


def weighted_sum(factors: Tensor, values: Tensor, prime: int = PRIME) -> Tensor:
    """Σ_n factors[·, n]·values[n, ·] mod p.

    Args:
        factors: elements in float64, `[rows, n]`.
        values: elements in int32, `[n, size]`.
        prime: p.

    Returns:
        Elements in float64, `[rows, size]`.
    """
    at_once = max(1, (EXACT - prime) // (prime - 1) ** 2)  # so many products, and a residue, stay below 2⁵³
    sums = torch.empty(len(factors), values.shape[1], dtype=torch.float64)
    for part in column_blocks(*values.shape):
        block, total = values[:, part].to(torch.float64), sums[:, part]
        total.copy_(reduce_(factors[:, :at_once] @ block[:at_once], prime))
        for start in range(at_once, len(block), at_once):
            rows = slice(start, start + at_once)
            reduce_(total.add_(factors[:, rows] @ block[rows]), prime)
    return sums


def column_blocks(records: int, size: int) -> Iterator[slice]:
    """Columns of `[records, size]`, some at a time."""
    width = max(1, _BLOCK // records)
    for start in range(0, size, width):
        yield slice(start, min(size, start + width))
