"""Bringing a message to L2 norm at most C, record by record: the sensitivity of the claim is 2C."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from delta.errors import InputError, PrivacyParameterError

__all__ = ["check_finite", "clip", "normalise"]


def check_finite(values: Tensor, *, what: str) -> None:
    """Refuse NaN and infinite values.

    Raises:
        InputError: naming `what`, never a value.
    """
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"{what} holds NaN or infinite values; check the record and its preprocessing")


def normalise(m: Tensor, clip_norm: float) -> Tensor:
    """Scale each record to norm C, m ← C · m / ‖m‖₂; a zero message stays zero.

    The norm itself is hidden, and nothing is fitted to data. Each record is divided by its largest magnitude
    first, so that no square under- or overflows.

    Args:
        m: `[n, ...]`, any floating type.
        clip_norm: C, above 0.

    Returns:
        `[n, ...]` float64, norm C or 0 a record, up to rounding.

    Raises:
        InputError: m is not finite.
        PrivacyParameterError: C is not a finite number above 0.
    """
    unit, _, norm = _scaled(m, clip_norm)
    return unit * (clip_norm / norm)


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
    unit, peak, norm = _scaled(m, clip_norm)
    outside = norm > clip_norm / peak  # ‖m‖ > C, where ‖m‖ itself might overflow
    return torch.where(outside, unit * (clip_norm / norm), m.to(torch.float64))


def _scaled(m: Tensor, clip_norm: float) -> tuple[Tensor, Tensor, Tensor]:
    """The message over its peak `[n, ...]`, the peak `[n, 1, ...]` (1 for zeros) and the scaled norm `[n, 1, ...]`."""
    if not 0 < clip_norm < math.inf:
        raise PrivacyParameterError(f"clip_norm must be a finite number above 0, got {clip_norm!r}")
    check_finite(m, what="a message")
    wide = m.detach().to(torch.float64)
    flat = wide.reshape(wide.shape[0], -1)
    one_a_record = (-1, *[1] * (m.dim() - 1))
    peak = flat.abs().amax(1)
    peak = torch.where(peak > 0, peak, 1.0)
    norm = torch.linalg.vector_norm(flat / peak[:, None], dim=1)
    norm = torch.where(norm > 0, norm, 1.0)
    return wide / peak.view(one_a_record), peak.view(one_a_record), norm.view(one_a_record)
