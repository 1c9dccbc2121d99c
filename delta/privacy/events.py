"""Release events: what happened, apart from what it costs (`accountant`).

The meaning of an event never changes; a mechanism that none of them describes gets an event of its own, and
an accountant that does not know it refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass

from delta.errors import PrivacyParameterError
from delta.privacy.gaussian import mu_of_sigma

__all__ = [
    "Composed",
    "Event",
    "GaussianRelease",
    "NonPrivateRelease",
    "RandomizedResponseLabel",
    "release_event",
]


@dataclass(frozen=True)
class Event:
    """Base of everything that can happen to one record, under the replace-one relation."""


@dataclass(frozen=True)
class GaussianRelease(Event):
    """A message bounded in L2 norm left with Gaussian noise, or as any post-processing of that.

    Attributes:
        mu: 2C/σ, above 0 and finite.
    """

    mu: float

    def __post_init__(self) -> None:
        if isinstance(self.mu, bool) or not 0.0 < self.mu < float("inf"):
            raise PrivacyParameterError(
                f"mu of a Gaussian release must be a finite number above 0, got {self.mu!r}: "
                "a release without noise is a NonPrivateRelease"
            )


@dataclass(frozen=True)
class NonPrivateRelease(Event):
    """A message left without noise (`noise: none`): no guarantee bounds its cost."""


@dataclass(frozen=True)
class RandomizedResponseLabel(Event):
    """A label left through randomised response, memoised, whatever the number of classes.

    Attributes:
        epsilon: ε of pure DP, replace-one, above 0 and at most 700.
    """

    epsilon: float

    def __post_init__(self) -> None:
        if isinstance(self.epsilon, bool) or not 0.0 < self.epsilon <= 700.0:
            raise PrivacyParameterError(
                f"epsilon of a label must lie in (0, 700], got {self.epsilon!r}: 0 tells the cloud nothing, "
                "and above 700 no label is ever flipped; say `labels: none` or `labels: disclosed` instead"
            )


@dataclass(frozen=True)
class Composed(Event):
    """Several events, all of them `count` times, each choice free to depend on the earlier outcomes.

    Attributes:
        events: in any order.
        count: how often, at least 0.
    """

    events: tuple[Event, ...]
    count: int = 1

    def __post_init__(self) -> None:
        if type(self.count) is not int or self.count < 0:
            raise PrivacyParameterError(
                f"count of composed events must be a whole number from 0, got {self.count!r}"
            )


def release_event(*, sigma: float | None, clip_norm: float) -> GaussianRelease | NonPrivateRelease:
    """The event of one release of a configuration.

    Args:
        sigma: σ of the noise; none for `noise: none`.
        clip_norm: C, the bound on the message's L2 norm.

    Raises:
        PrivacyParameterError: σ or C is out of range.
    """
    if sigma is None:
        return NonPrivateRelease()
    return GaussianRelease(mu_of_sigma(sigma=sigma, clip_norm=clip_norm))
