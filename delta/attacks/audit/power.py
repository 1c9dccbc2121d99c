"""How often an audit rejects: the same statistics on draws from the law of the captured bits.

Only the concentrated coordinate of the exact pair carries weight in the score, and its law under each fault
is known: P(bit = 1) = Φ(±f·C/σ), f being the factor by which the fault lets the message grow. Thousands of
audits then take seconds. What they cannot show, that image, private half and wire behave by that law, is what
the end-to-end runs are for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from delta.attacks.audit.audit import BOUND_SHARE
from delta.attacks.audit.binomial import clopper_pearson_lower, clopper_pearson_upper
from delta.attacks.audit.bound import bound_of
from delta.attacks.audit.faults import Fault

__all__ = ["Rate", "rejection_rate", "simulated_bound"]


@dataclass(frozen=True)
class Rate:
    """A rate over runs, with one-sided 95 % confidence limits."""

    hits: int
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Counts, the rate and its limits."""
        return {
            "rejected": self.hits,
            "runs": self.runs,
            "rate": self.hits / self.runs,
            "lower_95": clopper_pearson_lower(self.hits, self.runs, alpha=0.05),
            "upper_95": clopper_pearson_upper(self.hits, self.runs, alpha=0.05),
        }


def simulated_bound(
    *, mu: float, fault: Fault | None, samples: int, confidence: float, generator: np.random.Generator
) -> float:
    """The lower bound on μ of one simulated audit of the transparent network.

    Args:
        mu: the claim, 2C/σ.
        fault: that is seeded; none for the honest mechanism.
        samples: records of each image.
        confidence: as of an audit.
        generator: of the draws.
    """
    factor = 1.0 if fault is None else fault.norm
    fresh = fault is not None and fault.fresh
    p = NormalDist().cdf(factor * mu / 2)
    weight = 2 * math.log(NormalDist().cdf(mu / 2) / NormalDist().cdf(-mu / 2))
    scores = []
    for chance in (p, 1 - p):
        ones = (generator.random((samples, 2)) < chance).astype(np.float64)
        if not fresh:
            ones[:, 1] = ones[:, 0]
        scores.append((ones.sum(1) - 1) * weight)
    return bound_of(scores[0], scores[1], alpha=BOUND_SHARE * (1 - confidence)).mu


def rejection_rate(
    *, mu: float, fault: Fault | None, samples: int, confidence: float, seeds: Sequence[int]
) -> tuple[Rate, float]:
    """How many simulated audits reject the claim, and the mean bound."""
    bounds = [
        simulated_bound(
            mu=mu,
            fault=fault,
            samples=samples,
            confidence=confidence,
            generator=np.random.default_rng(seed),
        )
        for seed in seeds
    ]
    return Rate(sum(bound > mu for bound in bounds), len(bounds)), sum(bounds) / len(bounds)
