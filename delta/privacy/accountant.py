"""The accountant: exact composition of μ-GDP events, failing closed on what it does not know.

Events of μ₁, …, μ_k compose to √(Σ μ_i²)-GDP, adaptively and without loss (Dong, Roth & Su 2019,
arXiv 1905.02383, corollary 2). There is no amplification by subsampling: the cloud can tell which record a
release belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from statistics import NormalDist
from types import MappingProxyType
from typing import Any, Literal

from delta.errors import PrivacyParameterError
from delta.privacy.events import Composed, Event, GaussianRelease, NonPrivateRelease, RandomizedResponseLabel
from delta.privacy.gaussian import epsilon_of

__all__ = ["GdpAccountant", "event_mu", "label_mu", "squared_mu"]

NeighbouringRelation = Literal["replace-one"]


class GdpAccountant:
    """Sums up what events cost one record, or one subject, under one neighbouring relation.

    Args:
        relation: must be `replace-one`, the relation for which a release's μ = 2C/σ holds.

    Raises:
        PrivacyParameterError: another relation is asked for.
    """

    def __init__(self, *, relation: NeighbouringRelation) -> None:
        if relation != "replace-one":
            raise PrivacyParameterError(
                f"neighbouring relation {relation!r} is not supported: "
                "a release's μ = 2C/σ holds for 'replace-one'"
            )
        self.relation = relation
        self._squared: Fraction | None = Fraction(0)
        self._ledger: list[tuple[Event, int]] = []

    def compose(self, event: Event, count: int = 1) -> GdpAccountant:
        """Add an event that happened `count` times; nothing changes unless every part of it is known.

        Returns:
            The accountant itself.

        Raises:
            PrivacyParameterError: the event or one inside it is of an unknown kind, or the count is negative.
        """
        cost = squared_mu(Composed((event,), count))
        self._squared = None if self._squared is None or cost is None else self._squared + cost
        self._ledger.append((event, count))
        return self

    @property
    def mu(self) -> float:
        """μ of everything composed so far; infinite once a release went out without noise."""
        return root(self._squared)

    def epsilon(self, delta: float) -> float:
        """The smallest ε at δ of everything composed so far; infinite where there is no guarantee.

        Raises:
            PrivacyParameterError: δ is outside (0, 1).
        """
        return epsilon_of(mu=self.mu, delta=delta)

    @property
    def ledger(self) -> tuple[tuple[Event, int], ...]:
        """The events and counts composed so far, in order; composing them anew gives the same μ."""
        return tuple(self._ledger)


def squared_mu(event: Event) -> Fraction | None:
    """The exact μ² of an event; none where no guarantee bounds it.

    μ² is a fraction so that its sums do not depend on their order.

    Raises:
        PrivacyParameterError: the event, or one inside it, is of an unknown kind.
    """
    handler = _COSTS.get(type(event))
    if handler is None:
        raise PrivacyParameterError(
            f"events of kind {type(event).__name__} have no known cost; known are "
            f"{', '.join(sorted(kind.__name__ for kind in _COSTS))}"
        )
    return handler(event)


def event_mu(event: Event) -> float:
    """μ of one event, infinite for a release without noise.

    Raises:
        PrivacyParameterError: the event is of an unknown kind.
    """
    return root(squared_mu(event))


def label_mu(*, epsilon: float) -> float:
    """μ_L = 2Φ⁻¹(e^ε/(1 + e^ε)): the smallest μ for which ε-DP implies μ-GDP.

    The trade-off function of ε-DP has its kink at α = 1/(1 + e^ε); μ_L-GDP passes through that point, and
    being convex it lies below both lines elsewhere.

    Raises:
        PrivacyParameterError: ε is outside (0, 700].
    """
    RandomizedResponseLabel(epsilon)
    return -2.0 * NormalDist().inv_cdf(1.0 / (1.0 + math.exp(epsilon)))


def root(squared: Fraction | None) -> float:
    """√ of a sum of μ²; infinite for none."""
    return math.inf if squared is None else math.sqrt(squared)


def _of_gaussian(event: GaussianRelease) -> Fraction:
    return Fraction(event.mu) ** 2


def _of_non_private(event: NonPrivateRelease) -> None:
    del event


def _of_label(event: RandomizedResponseLabel) -> Fraction:
    return Fraction(label_mu(epsilon=event.epsilon)) ** 2


def _of_composed(event: Composed) -> Fraction | None:
    costs = [squared_mu(part) for part in event.events]  # all of them, so that unknown parts never pass
    if event.count == 0:
        return Fraction(0)
    if any(cost is None for cost in costs):
        return None
    return event.count * sum((cost for cost in costs if cost is not None), Fraction(0))


_COSTS: Mapping[type[Event], Callable[[Any], Fraction | None]] = MappingProxyType(
    {
        GaussianRelease: _of_gaussian,
        NonPrivateRelease: _of_non_private,
        RandomizedResponseLabel: _of_label,
        Composed: _of_composed,
    }
)
