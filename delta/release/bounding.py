"""Bringing a message to L2 norm at most C, record by record: the sensitivity of the claim is 2C."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from delta.errors import InputError, PrivacyParameterError

__all__ = ["check_finite", "clip", "normalise"]

_LOW, _HIGH = 1e-140, 1e140  # norms whose square neither under- nor overflows in float64


def check_finite(values: Tensor, *, what: str) -> None:
    """Refuse NaN and infinite values.

    Raises:
        InputError: naming `what`, never a value.
    """
    # A finite sum has finite terms and is cheap; finite terms may still overflow it, so look again.
    if not bool(values.sum().isfinite()) and not bool(values.isfinite().all()):
        raise InputError(f"{what} holds NaN or infinite values; check the record and its preprocessing")


def normalise(m: Tensor, clip_norm: float) -> Tensor:
    """Scale each record to norm C, m ← C · m / ‖m‖₂; a zero message stays zero.

    The norm itself is hidden, and nothing is fitted to data.

    Args:
        m: `[n, ...]`, any floating type.
        clip_norm: C, above 0.

    Returns:
        `[n, ...]` float64, norm C or 0 a record, up to rounding.

    Raises:
        InputError: m is not finite.
        PrivacyParameterError: C is not a finite number above 0.
    """
    scaled, norm, _ = _measured(m, clip_norm)
    return scaled.mul_((clip_norm / norm)[:, None]).view(m.shape)


def clip(m: Tensor, clip_norm: float) -> Tensor:
    """Scale each record down to norm C, m ← m · min(1, C / ‖m‖₂): one inside the ball is not touched.

    Args:
        m: `[n, ...]`, any floating type.
        clip_norm: C, above 0, fixed in advance.

    Returns:
        `[n, ...]` float64, norm at most C a record, up to rounding.

    Raises:
        InputError: m is not finite.
        PrivacyParameterError: C is not a finite number above 0.
    """
    scaled, norm, unit = _measured(m, clip_norm)
    inside = torch.ones_like(norm) if unit is None else unit
    outside = norm > clip_norm / inside  # ‖m‖ > C, where ‖m‖ itself might overflow
    factor = torch.where(outside, clip_norm / norm, inside)
    return scaled.mul_(factor[:, None]).view(m.shape)


def _measured(m: Tensor, clip_norm: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """A float64 copy and its norms, all of them in a range in which squares are safe.

    Returns:
        m over its unit `[n, d]`; its norm `[n]`, 1 for a zero record; the unit `[n]`: 1, or the largest
        magnitude of a record whose squares would under- or overflow; none where all are 1.
    """
    if not 0 < clip_norm < math.inf:
        raise PrivacyParameterError(f"clip_norm must be a finite number above 0, got {clip_norm!r}")
    if not m.numel():
        return m.detach().to(torch.float64).reshape(len(m), -1), torch.ones(len(m), dtype=torch.float64), None
    flat = m.detach().to(torch.float64, copy=True, memory_format=torch.contiguous_format).view(len(m), -1)
    norm = torch.linalg.vector_norm(flat, dim=1)
    low, high = torch.aminmax(norm)
    if float(low) > _LOW and float(high) < _HIGH:  # false where a norm is NaN
        return flat, norm, None
    wild = ~((norm > _LOW) & (norm < _HIGH))
    rows = flat[wild]
    check_finite(rows, what="a message")
    peak = rows.abs().amax(1)
    peak = torch.where(peak > 0, peak, 1.0)
    again = torch.linalg.vector_norm(rows / peak[:, None], dim=1)
    unit = torch.ones_like(norm)
    flat[wild], unit[wild], norm[wild] = rows / peak[:, None], peak, torch.where(again > 0, again, 1.0)
    return flat, norm, unit
