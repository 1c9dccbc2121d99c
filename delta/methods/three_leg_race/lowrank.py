"""Splitting a convolution's input into a low-rank part and a residual, and convolving the low-rank part.

A record is a matrix X of c channels by h·w positions. Its low-rank part is U V, the leading r terms of its
singular value decomposition, and what is left is the residual. A convolution is linear, so a private side
that holds U and V gets the answer for U V from r channels in place of c: first W U, then that on V.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from delta.decomposition.basis import svd_basis
from delta.decomposition.products import record_bmm
from delta.errors import CloudAnswerError
from delta.methods.three_leg_race.geometry import Geometry

__all__ = [
    "LowRank",
    "convolve_low_rank",
    "low_rank_macs",
    "low_rank_weight_gradient",
    "split_macs",
    "split_records",
    "squares",
]

_LOW, _HIGH = 1e-15, 1e15  # of a norm: outside, its square leaves the range of float32


@dataclass(frozen=True)
class LowRank:
    """The low-rank parts of a batch, padded with zeros to the largest rank r in it.

    Attributes:
        left: U, `[n, c, r]`.
        right: V, `[n, r, h·w]`.
        ranks: of each record, `[n]` int64.
    """

    left: Tensor
    right: Tensor
    ranks: Tensor

    @property
    def rank(self) -> int:
        """r, with which the batch is computed."""
        return self.left.shape[2]

    def product(self) -> Tensor:
        """U V, `[n, c, h·w]`."""
        return record_bmm(self.left, self.right)


@torch.no_grad()
def split_records(x: Tensor, *, energy: float, max_rank: int) -> tuple[LowRank, Tensor]:
    """Split records by the energy rule: terms are added until the residual holds no more than its share.

    Each record has the rank that it needs, one at least, and its split does not depend on its neighbours.

    Args:
        x: `[n, c, h, w]` float32.
        energy: the residual's share of the record's sum of squares at which to stop; 0 takes all terms.
        max_rank: the most terms.

    Returns:
        The low-rank part, and the residual X − U V `[n, c, h, w]`.

    Raises:
        CloudAnswerError: a value is not finite, which with finite records and weights is the cloud's doing.
    """
    flat = x.flatten(2)
    total = squares(flat, (1, 2))
    if not bool(total.isfinite().all()):
        raise CloudAnswerError("after the cloud's answers a layer's input is not finite")
    channels, positions = flat.shape[1:]
    most = min(max_rank, channels, positions)
    if channels <= positions:
        left = svd_basis(x, most)
        right = record_bmm(left.mT, flat)
        terms = squares(right, 2)
    else:  # the smaller Gram matrix is that of the positions
        basis = svd_basis(flat.mT.unsqueeze(3), most)
        left, right = record_bmm(flat, basis), basis.mT
        terms = squares(left, 1)
    rest = total[:, None] - terms.cumsum(1)
    ranks = ((rest > energy * total[:, None]).sum(1) + 1).clamp_max(most)
    if energy == 0:  # what is left after the last term is rounding, of either sign
        ranks = torch.full_like(ranks, most)
    rank = int(ranks.max())
    kept = (torch.arange(rank, device=x.device) < ranks[:, None]).to(x.dtype)  # [n, r]
    left, right = left[:, :, :rank].contiguous(), right[:, :rank] * kept[:, :, None]
    parts = LowRank(left, right, ranks)
    return parts, (flat - parts.product()).view_as(x)


def convolve_low_rank(geometry: Geometry, parts: LowRank, weight: Tensor) -> Tensor:
    """The convolution of U V, `[n, o, h', w']`, through r channels where that is cheaper.

    Args:
        geometry: of the convolution.
        parts: of its input.
        weight: `[o, c / groups, k_h, k_w]`.
    """
    if not _through_rank(geometry, parts.rank):
        return geometry.convolve(_maps(geometry, parts.product()), weight)
    records, channels, rank = parts.left.shape
    taps = geometry.kernel[0] * geometry.kernel[1]
    rows = weight.permute(0, 2, 3, 1).reshape(-1, channels)  # [o·k·k, c]
    columns = parts.left.transpose(0, 1).reshape(channels, -1)  # [c, n·r]
    folded = (rows @ columns).view(-1, taps, records, rank).permute(2, 0, 3, 1)  # [n, o, r, k·k]
    answer = torch.bmm(folded.reshape(records, -1, rank * taps), _patches(geometry, parts))
    return answer.view(records, *geometry.output)


def low_rank_weight_gradient(geometry: Geometry, parts: LowRank, gradient: Tensor, weight: Tensor) -> Tensor:
    """The low-rank part's share in the gradient of the weights, in their shape.

    Args:
        geometry: of the convolution.
        parts: of its input.
        gradient: of its answer, `[n, o, h', w']`.
        weight: `[o, c / groups, k_h, k_w]`.
    """
    if not _through_rank(geometry, parts.rank):
        return geometry.weight_gradient(gradient, _maps(geometry, parts.product()), weight)
    records, channels, rank = parts.left.shape
    height, width = geometry.kernel
    folded = torch.bmm(gradient.flatten(2), _patches(geometry, parts).mT)  # [n, o, r·k·k]
    rows = folded.view(records, -1, rank, height * width).permute(1, 3, 0, 2)  # [o, k·k, n, r]
    columns = parts.left.transpose(1, 2).reshape(-1, channels)  # [n·r, c]
    product = rows.reshape(-1, records * rank) @ columns  # [o·k·k, c]
    return product.view(-1, height, width, channels).permute(0, 3, 1, 2).contiguous()


def low_rank_macs(geometry: Geometry, rank: int) -> int:
    """Of `convolve_low_rank`, a record: W U and then that on V, or U V and then W on that."""
    return (_folded_macs if _through_rank(geometry, rank) else _product_macs)(geometry, rank)


def split_macs(geometry: Geometry, rank: int, *, max_rank: int) -> int:
    """Of `split_records`, a record: Gram matrix, all coefficients, and U V. The eigenvalue problem is not counted."""
    channels, positions = geometry.input[0], geometry.input[1] * geometry.input[2]
    full = geometry.full_rank
    return channels * positions * (full + min(max_rank, full) + rank)


def _folded_macs(geometry: Geometry, rank: int) -> int:
    channels, height, width = geometry.output
    taps = geometry.kernel[0] * geometry.kernel[1]
    return channels * taps * rank * (geometry.input[0] + height * width)


def _product_macs(geometry: Geometry, rank: int) -> int:
    channels, height, width = geometry.input
    return geometry.macs + rank * channels * height * width


def _through_rank(geometry: Geometry, rank: int) -> bool:
    """Whether r channels are cheaper than c. With groups no: U mixes what they keep apart."""
    return geometry.groups == 1 and _folded_macs(geometry, rank) < _product_macs(geometry, rank)


def _patches(geometry: Geometry, parts: LowRank) -> Tensor:
    """Of V, `[n, r·k_h·k_w, h'·w']`."""
    return geometry.patches(_maps(geometry, parts.right))


def _maps(geometry: Geometry, rows: Tensor) -> Tensor:
    """`[n, j, h·w]` seen as `[n, j, h, w]`."""
    return rows.view(*rows.shape[:2], *geometry.input[1:])


def squares(x: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    """Sums of squares in float64; in float32 on the way, many times faster, where that loses nothing."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=axes)
    if not bool(((norm > _LOW) & (norm < _HIGH)).all()):
        norm = torch.linalg.vector_norm(x, dim=axes, dtype=torch.float64)
    return norm.to(torch.float64).square()
