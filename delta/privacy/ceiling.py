"""The information ceiling: how many bits a release can carry about its record, whatever its length."""

from __future__ import annotations

import math

from delta.errors import PrivacyParameterError

__all__ = ["ceiling_bits"]


def ceiling_bits(*, mu: float) -> float:
    """μ²/(8 ln 2), an upper bound in bits on the mutual information of a record and its release.

    For messages of norm at most C the Gaussian channel gives I ≤ E KL(N(m, σ²) ‖ N(0, σ²)) ≤ C²/(2σ²) nats,
    and μ = 2C/σ. Signs and packing only lose information.

    Args:
        mu: 2C/σ, at least 0; infinite for a release without noise, which has no ceiling.

    Raises:
        PrivacyParameterError: μ is negative or not a number.
    """
    if math.isnan(mu) or mu < 0:
        raise PrivacyParameterError(f"mu must be a number of at least 0, got {mu!r}")
    return mu * mu / (8.0 * math.log(2.0))
