"""The channel basis U: which r directions among c channels hold most of an intermediate representation.

Both kinds come from the c×c Gram matrix X Xᵀ of the record as a c×(hw) matrix X: its eigenvectors are X's
left singular vectors, and c is far below hw. No gradient flows through a basis.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from delta.decomposition.products import record_bmm
from delta.errors import ConfigError, InputError

__all__ = [
    "ITERATIONS",
    "OVERSAMPLING",
    "Algorithm",
    "iteration_start",
    "pca_basis",
    "svd_basis",
    "synthetic_images",
    "working_dtype",
]

Algorithm = Literal["exact", "approximate"]

ITERATIONS = 3
"""Subspace iterations of `approximate`. With 2 spare directions they leave a residual 0.4 to 0.9 % above the
optimum on a convolutional stem's IR; without spare directions 4 % above, with 4 spare 0.1 to 0.2 %."""

OVERSAMPLING = 2
"""Spare directions that the iteration carries and drops at the end."""

_TRACE_LOW, _TRACE_HIGH = 1e-24, 1e30  # outside, a float32 Gram matrix has lost digits to under- or overflow
_CHUNK = 64


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which an IR is decomposed: float64 stays, everything narrower becomes float32.

    Raises:
        InputError: not a floating type.
    """
    if not dtype.is_floating_point:
        raise InputError(f"an intermediate representation is float32, float64 or bfloat16, got {dtype}")
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.no_grad()
def svd_basis(phi: Tensor, rank: int, algorithm: Algorithm = "exact", start: Tensor | None = None) -> Tensor:
    """The leading left singular vectors of each record, through its Gram matrix.

    `exact` takes the eigenvectors of X Xᵀ. `approximate` iterates a subspace on X Xᵀ with Householder QR in
    each step (Cholesky-QR is not positive definite in float32 there) and ends with a Rayleigh-Ritz rotation;
    see Halko, Martinsson & Tropp 2011, section 4.4. A record's basis does not depend on its batch.

    Args:
        phi: `[b, c, h, w]`, float32, float64 or bfloat16.
        rank: r, 1 ≤ r ≤ c.
        algorithm: `exact` or `approximate`.
        start: `[c, q]` with q ≥ r, of `approximate`: see `iteration_start`.

    Returns:
        U `[b, c, r]`, float32 (float64 for float64 input), orthonormal columns by falling singular value, the
        largest entry of each positive; arbitrary but fixed directions where a record's rank is below r.

    Raises:
        ConfigError: rank or start do not fit.
        InputError: the representation is not finite.
    """
    channels = phi.shape[1]
    check_rank(rank, channels)
    x = phi.flatten(2).to(working_dtype(phi.dtype))
    gram = _gram(x)
    if algorithm == "exact":
        return _fix_signs(_leading(gram, rank))
    if start is None or start.shape[0] != channels or not rank <= start.shape[1] <= channels:
        got = "none" if start is None else f"{list(start.shape)}"
        raise ConfigError(
            f"approximate svd needs a start of shape [{channels}, {rank} to {channels}], got {got}; "
            "make one with iteration_start"
        )
    frame = start.to(gram).expand(gram.shape[0], -1, -1)
    for _ in range(ITERATIONS):
        frame = torch.linalg.qr(record_bmm(gram, frame)).Q
    small = record_bmm(frame.mT, record_bmm(gram, frame))
    return _fix_signs(record_bmm(frame, _leading(small, rank)))


@torch.no_grad()
def pca_basis(phi_samples: Tensor, rank: int) -> Tensor:
    """One uncentred basis for all records: leading eigenvectors of Σ X Xᵀ, summed in float64.

    Args:
        phi_samples: `[n, c, h, w]`, n ≥ 1.
        rank: r, 1 ≤ r ≤ c.

    Returns:
        U `[c, r]`, float32 (float64 for float64 input), orthonormal columns with the signs of `svd_basis`.

    Raises:
        ConfigError: the rank does not fit.
        InputError: no samples, or samples that are not finite.
    """
    check_rank(rank, phi_samples.shape[1])
    if not phi_samples.shape[0]:
        raise InputError("a pca basis needs at least one sample, got none")
    channels = phi_samples.shape[1]
    total = torch.zeros(channels, channels, dtype=torch.float64, device=phi_samples.device)
    for part in torch.split(phi_samples, _CHUNK):
        x = part.flatten(2).to(torch.float64)
        total += torch.bmm(x, x.mT).sum(0)
    if not bool(total.isfinite().all()):
        raise InputError("the samples of a pca basis hold NaN or infinite values; check the backbone")
    return _fix_signs(_leading(total, rank)).to(working_dtype(phi_samples.dtype))


def iteration_start(channels: int, rank: int, seed: int) -> Tensor:
    """A fixed orthonormal start for `approximate`, from a seed alone.

    Returns:
        `[c, min(c, r + OVERSAMPLING)]` float32.
    """
    check_rank(rank, channels)
    generator = torch.Generator().manual_seed(seed)
    columns = min(channels, rank + OVERSAMPLING)
    draw = torch.randn(channels, columns, generator=generator, dtype=torch.float64)
    return _fix_signs(torch.linalg.qr(draw).Q).float()


def synthetic_images(n: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """Random images with the 1/f amplitude spectrum of natural ones: data of nobody.

    Channels share most of their variation, as colours do. Values are those of preprocessed records: each
    channel of each image has mean 0 and variance 1.

    Args:
        n: number of images.
        shape: `(channels, height, width)`.
        seed: of the generator; the same seed gives the same images.

    Returns:
        `[n, channels, height, width]` float32.
    """
    channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(n, channels, height, width, generator=generator, dtype=torch.float64)
    shared = torch.randn(n, 1, height, width, generator=generator, dtype=torch.float64)
    rows = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    columns = torch.fft.rfftfreq(width, dtype=torch.float64)[None, :]
    amplitude = 1 / torch.hypot(rows, columns).clamp_min(1 / max(height, width))
    noise = math.sqrt(0.8) * shared + math.sqrt(0.2) * own
    image = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=(height, width))
    image = image - image.mean((2, 3), keepdim=True)
    spread = image.square().mean((2, 3), keepdim=True).sqrt()
    return torch.div(image, spread.clamp_min(1e-12)).float()


def check_rank(rank: int, channels: int) -> None:
    """Refuse a rank outside 1 … channels.

    Raises:
        ConfigError: naming the nearest valid rank.
    """
    if not 1 <= rank <= channels:
        nearest = min(max(rank, 1), channels)
        raise ConfigError(f"rank {rank} does not fit {channels} channels; the nearest valid is {nearest}")


def _gram(x: Tensor) -> Tensor:
    """X Xᵀ of each record, `[b, c, n]` to `[b, c, c]`, up to a positive factor a record.

    Records whose squares leave the range of the type are scaled by their own largest entry first; the others
    are not touched, so that no record sees its neighbours.
    """
    gram = _symmetric_product(x)
    trace = gram.diagonal(dim1=1, dim2=2).sum(-1)
    if not len(trace) or bool(((trace > _TRACE_LOW) & (trace < _TRACE_HIGH)).all()):
        return gram
    rows = (~((trace > _TRACE_LOW) & (trace < _TRACE_HIGH))).nonzero()[:, 0]
    wild = x[rows].to(torch.float64)
    if not bool(wild.isfinite().all()):
        raise InputError("an IR holds NaN or infinite values; check the input and the backbone")
    peak = wild.abs().amax((1, 2), keepdim=True)
    wild = wild / torch.where(peak > 0, peak, 1.0)
    return gram.index_copy(0, rows, record_bmm(wild, wild.mT).to(gram.dtype))


def _symmetric_product(x: Tensor) -> Tensor:
    """X Xᵀ by strips of rows, each computed from the diagonal on and mirrored: 5/8 of the work at c = 64."""
    channels = x.shape[1]
    strip = max(16, -(-channels // 4))
    gram = x.new_empty(x.shape[0], channels, channels)
    for top in range(0, channels, strip):
        end = min(top + strip, channels)
        gram[:, top:end, top:] = record_bmm(x[:, top:end], x[:, top:].mT)
        gram[:, top:end, :top] = gram[:, :top, top:end].mT
    return gram


def _leading(symmetric: Tensor, rank: int) -> Tensor:
    """Eigenvectors of the `rank` largest eigenvalues, largest first: `[..., c, c]` to `[..., c, r]`."""
    vectors: Tensor = torch.linalg.eigh(symmetric).eigenvectors
    return vectors[..., -rank:].flip(-1)


def _fix_signs(basis: Tensor) -> Tensor:
    """Turn each column so that its entry of largest magnitude is positive."""
    low, high = torch.aminmax(basis.mT.contiguous(), dim=-1)
    return basis * torch.where(-low > high, -1.0, 1.0).to(basis.dtype).unsqueeze(-2)
