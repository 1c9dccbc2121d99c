"""The interval of a measured rate."""

from __future__ import annotations

import math

from delta.attacks.audit.binomial import clopper_pearson_lower, clopper_pearson_upper
from delta.errors import InputError

__all__ = ["clopper_pearson"]


def clopper_pearson(successes: float, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided interval of a rate (Clopper & Pearson, Biometrika 1934): it covers at least as often as stated.

    Args:
        successes: in [0, trials]; where ties gave a part of one, the interval reaches from the whole number below
            to that above.
        trials: at least 1.
        confidence: in (0, 1), both sides together.

    Raises:
        InputError: a number is out of range.
    """
    if trials < 1 or not 0 <= successes <= trials or not 0 < confidence < 1:
        raise InputError(
            f"an interval needs 0 ≤ successes ≤ trials, 1 ≤ trials and 0 < confidence < 1; got {successes:g} of "
            f"{trials} at {confidence:g}"
        )
    alpha = (1 - confidence) / 2
    return (
        clopper_pearson_lower(math.floor(successes), trials, alpha=alpha),
        clopper_pearson_upper(math.ceil(successes), trials, alpha=alpha),
    )
