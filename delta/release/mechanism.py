"""The one-bit mechanism: the law of Gaussian noise and a sign, without floating-point Gaussian tails.

sign(m + N(0, σ²)) is 1 with probability Φ(m/σ). Drawing that bit by comparing Φ(m/σ) with a uniform integer
has the same law, and none of the gaps of a floating-point sampler (Mironov, CCS 2012).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from delta.errors import InputError, PrivacyParameterError
from delta.release.bounding import check_finite

__all__ = ["one_bit"]


def one_bit(m: Tensor, *, sigma: float | None, uniforms: Tensor | None) -> Tensor:
    """One bit a value: P(bit = 1) = Φ(m/σ), or bit = (m ≥ 0) without noise.

    With q = Φ(−|m|/σ) ≤ ½ and u the uniform integer, a negative m gives 1 if u < 2⁶⁴·q, any other m gives 0
    if 2⁶⁴ − 1 − u < 2⁶⁴·q. The small tail is the one that is computed, so the law holds within 2⁻⁵²
    everywhere, near 0 and 1 too; a bit never falls as m rises under the same u.

    Args:
        m: `[n, d]` float64, bounded messages; any floating type without noise.
        sigma: σ, above 0; none for `noise: none`.
        uniforms: `[n, d]` uint64, independent and uniform; none where σ is none.

    Returns:
        `[n, d]` bool, on m's device.

    Raises:
        InputError: m is not finite, or the uniforms have another shape or type.
        PrivacyParameterError: σ is not a finite number above 0.
    """
    check_finite(m, what="a message")
    if sigma is None:
        return m >= 0
    if not 0 < sigma < math.inf:
        raise PrivacyParameterError(f"sigma must be a finite number above 0, or none; got {sigma!r}")
    if m.dtype != torch.float64:
        raise InputError(f"the mechanism takes bounded messages in float64, got {m.dtype}")
    if uniforms is None or uniforms.dtype != torch.uint64 or uniforms.shape != m.shape:
        got = "none" if uniforms is None else f"{uniforms.dtype} {list(uniforms.shape)}"
        raise InputError(f"the mechanism needs one uint64 a value, shape {list(m.shape)}; got {got}")
    value = m.detach().cpu()
    tail = 0.5 * torch.erfc(value.abs() / (sigma * math.sqrt(2)))  # Φ(−|m|/σ)
    threshold = np.ldexp(tail.numpy(), 64).astype(np.uint64)  # at most 2⁶³: exact
    negative = (value < 0).numpy()
    u = uniforms.cpu().numpy()
    against = np.where(negative, u, ~u) < threshold
    return torch.from_numpy(against ^ ~negative).to(m.device)
