"""Gaussian noise on a grid, drawn from uniform integers: the law of N(m, σ²), rounded.

A floating-point sampler of the Gaussian leaves gaps and marks: which doubles m + σz can take depends on m, and
one look at the low-order digits may tell two messages apart whatever σ is (Mironov, CCS 2012). So

- z = Φ⁻¹ of a 64-bit uniform, in float64, its magnitude from the small tail, where Φ⁻¹ loses no digits;
- m + σz is rounded to a multiple of g, a power of two between σ/512 and σ/256 that depends on σ alone.

Rounding is post-processing: were z exact, the law of the result would be that of the Gaussian mechanism. What is
not exact: the border between two cells lies off by some 1e-15 of itself, which changes the probability of a
cell, about g/σ, by some 1e-12 of it; a cell beyond 7σ is hit by few of the 2⁶⁴ integers, and none lies beyond
9.2σ (probability 1e-19 a value). Nothing here hides how long the arithmetic takes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from delta.errors import InputError, PrivacyParameterError
from delta.release.bounding import check_finite

__all__ = ["gaussian_on_grid", "grid_of", "normal_of"]

_CELLS = 8  # σ holds 2⁸ to 2⁹ cells
_MAGNITUDE = np.uint64(2**63 - 1)


def grid_of(sigma: float) -> float:
    """g, the largest power of two of at most σ/256.

    Raises:
        PrivacyParameterError: σ is not a finite number above 0.
    """
    if not 0 < sigma < math.inf:
        raise PrivacyParameterError(f"sigma must be a finite number above 0, got {sigma!r}")
    return math.ldexp(1.0, math.frexp(sigma)[1] - 1 - _CELLS)


def normal_of(uniforms: Tensor) -> Tensor:
    """Standard normal values of uniform integers: the top bit is the sign, the others the tail.

    Args:
        uniforms: any shape, uint64.

    Returns:
        The same shape, float64.
    """
    u = uniforms.cpu().numpy()
    tail = np.ldexp((u & _MAGNITUDE).astype(np.float64) + 0.5, -64)  # in (0, ½]
    size = -torch.special.ndtri(torch.from_numpy(tail))
    return torch.where(torch.from_numpy(u > _MAGNITUDE), -size, size)


def gaussian_on_grid(m: Tensor, *, sigma: float, uniforms: Tensor) -> Tensor:
    """A message with Gaussian noise, m + N(0, σ²), rounded to the grid of σ.

    Args:
        m: `[n, d]` float64, bounded messages.
        sigma: σ, above 0.
        uniforms: `[n, d]` uint64, independent and uniform.

    Returns:
        `[n, d]` float32; exact multiples of g while they stay below 2²⁴·g, rounded once more beyond.

    Raises:
        InputError: m is not finite float64, or the uniforms have another shape or type.
        PrivacyParameterError: σ is not a finite number above 0.
    """
    grid = grid_of(sigma)
    check_finite(m, what="a message")
    if m.dtype != torch.float64 or uniforms.dtype != torch.uint64 or uniforms.shape != m.shape:
        raise InputError(
            f"the mechanism takes float64 messages and as many uint64; got {m.dtype}{list(m.shape)} and "
            f"{uniforms.dtype}{list(uniforms.shape)}"
        )
    noisy = m.detach().cpu() + sigma * normal_of(uniforms)
    return (torch.round(noisy / grid) * grid + 0.0).to(torch.float32)  # + 0: one zero only
