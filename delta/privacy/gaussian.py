"""The analytic Gaussian mechanism: μ, and the (ε, δ) that display it, both ways.

A Gaussian release of L2 sensitivity Δ and noise σ is μ-GDP with μ = Δ/σ, and so (ε, δ)-DP exactly for

    δ(ε; μ) = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ)

(Balle & Wang 2018, arXiv 1805.06530, theorem 8; Dong, Roth & Su 2019, arXiv 1905.02383, corollary 1). Under
the replace-one relation two messages of norm at most C differ by at most Δ = 2C.

The formula is evaluated in log space. With a = ε/μ − μ/2, b = ε/μ + μ/2 and the Mills ratio
M(x) = Φ(−x)/φ(x), e^ε φ(b) = φ(a) turns it into φ(a)·(M(a) − M(b)), free of overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from delta.errors import PrivacyParameterError

__all__ = ["delta_of", "epsilon_of", "mu_of", "mu_of_sigma", "sigma_for"]

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_FRACTION_FROM, _SERIES_FROM = 4.0, 30.0
_SERIES = (1.0, -1.0, 3.0, -15.0, 105.0, -945.0, 10395.0)
"""M(x) = Σ_j _SERIES[j] / x^(2j+1) for large x: (−1)^j (2j − 1)!!, relative error below 2e-15 from x = 30."""


def delta_of(*, mu: float, epsilon: float) -> float:
    """The smallest δ at which a μ-GDP release is (ε, δ)-DP.

    Args:
        mu: of the release, at least 0; infinite for one without noise.
        epsilon: at least 0.

    Returns:
        δ in [0, 1]; 0 also where it is below the smallest float.

    Raises:
        PrivacyParameterError: μ or ε is negative or not a number.
    """
    _check_mu(mu)
    if not _is_real(epsilon) or epsilon < 0 or math.isinf(epsilon):
        raise PrivacyParameterError(f"epsilon must be a finite number of at least 0, got {epsilon!r}")
    if mu == 0:
        return 0.0
    return math.exp(_log_delta(mu, epsilon))


def epsilon_of(*, mu: float, delta: float) -> float:
    """The smallest ε at which a μ-GDP release is (ε, δ)-DP.

    Args:
        mu: of the release, at least 0; infinite for one without noise.
        delta: in (0, 1).

    Returns:
        ε at least 0; infinite for an infinite μ.

    Raises:
        PrivacyParameterError: μ is negative or not a number, or δ is outside (0, 1).
    """
    _check_mu(mu)
    _check_delta(delta)
    if math.isinf(mu):
        return math.inf
    target = math.log(delta)
    if mu == 0 or _log_delta(mu, 0.0) <= target:
        return 0.0
    # δ ≤ Φ(−a) ≤ exp(−a²/2) for a ≥ 0, so a = √(2 ln 1/δ) is enough; the factor covers its rounding.
    high = (0.5 * mu * mu + mu * math.sqrt(-2.0 * target)) * (1.0 + 1e-9)
    return _bisect(lambda epsilon: _log_delta(mu, epsilon) > target, 0.0, high)[1]


def mu_of(*, epsilon: float, delta: float) -> float:
    """The largest μ whose release is (ε, δ)-DP.

    Args:
        epsilon: above 0 and finite.
        delta: in (0, 1).

    Raises:
        PrivacyParameterError: ε or δ is out of range.
    """
    _check_epsilon(epsilon)
    _check_delta(delta)
    target = math.log(delta)

    def within(mu: float) -> bool:
        return _log_delta(mu, epsilon) <= target

    high = 1.0
    while within(high):
        high *= 2.0
    low = high / 2.0
    while not within(low):
        high, low = low, low / 2.0
    return _bisect(within, low, high)[0]


def sigma_for(*, epsilon: float, delta: float, clip_norm: float) -> float:
    """The noise σ = 2C/μ that makes a release of messages of norm at most C (ε, δ)-DP, replace-one.

    Args:
        epsilon: above 0 and finite.
        delta: in (0, 1).
        clip_norm: C, the bound on a message's L2 norm, above 0.

    Raises:
        PrivacyParameterError: ε, δ or C is out of range.
    """
    _check_positive(
        "clip_norm", clip_norm, "it bounds a message's L2 norm, and no noise hides an unbounded one"
    )
    return 2.0 * clip_norm / mu_of(epsilon=epsilon, delta=delta)


def mu_of_sigma(*, sigma: float, clip_norm: float) -> float:
    """μ = 2C/σ of a release, replace-one.

    Args:
        sigma: standard deviation of the noise, above 0.
        clip_norm: C, the bound on a message's L2 norm, above 0.

    Raises:
        PrivacyParameterError: σ or C is out of range.
    """
    _check_positive("sigma", sigma, "a release without noise has no guarantee; say `noise: none` instead")
    _check_positive(
        "clip_norm", clip_norm, "it bounds a message's L2 norm, and no noise hides an unbounded one"
    )
    return 2.0 * clip_norm / sigma


def _log_delta(mu: float, epsilon: float) -> float:
    """The logarithm of δ(ε; μ), for μ above 0."""
    if math.isinf(mu):
        return 0.0
    x, half = epsilon / mu, 0.5 * mu
    if math.isinf(x):
        return -math.inf
    a, b = x - half, x + half
    if a > -1.0:
        return -0.5 * a * a - _LOG_SQRT_2PI + math.log(_mills_drop(a, b, mu, x))
    tail = math.exp(-0.5 * a * a - _LOG_SQRT_2PI) * _mills(b)
    return math.log1p(-(0.5 * math.erfc(-a / math.sqrt(2.0)) + tail))


def _mills_drop(a: float, b: float, mu: float, x: float) -> float:
    """M(a) − M(b) for b = a + μ around x, a > −1, without cancelling."""
    if a >= _SERIES_FROM:
        step = math.log1p(mu / a)
        powers = ((c, 2 * j + 1) for j, c in enumerate(_SERIES))
        return sum(c * a**-n * -math.expm1(-n * step) for c, n in powers)
    if mu < 1e-6:
        return mu * (1.0 - x * _mills(x))  # M' = xM − 1, at the midpoint
    return _mills(a) - _mills(b)


def _mills(x: float) -> float:
    """The Mills ratio M(x) = Φ(−x)/φ(x), x > −30."""
    if x < _FRACTION_FROM:
        return 0.5 * math.erfc(x / math.sqrt(2.0)) * math.exp(0.5 * x * x + _LOG_SQRT_2PI)
    if x >= _SERIES_FROM:
        return sum(c * x ** -(2 * j + 1) for j, c in enumerate(_SERIES))
    tail = x
    for k in range(20 + int(1000.0 / (x * x)), 0, -1):  # Laplace: 1/(x + 1/(x + 2/(x + 3/(x + …
        tail = x + k / tail
    return 1.0 / tail


def _bisect(at_low: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """The neighbouring floats between which a monotone condition changes, true at `low`, false at `high`."""
    while low < (middle := 0.5 * (low + high)) < high:
        if at_low(middle):
            low = middle
        else:
            high = middle
    return low, high


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _check_positive(name: str, value: float, why: str) -> None:
    if not _is_real(value) or value <= 0 or math.isinf(value):
        raise PrivacyParameterError(f"{name} must be a finite number above 0, got {value!r}: {why}")


def _check_epsilon(epsilon: float) -> None:
    _check_positive(
        "epsilon", epsilon, "ε = 0 would need infinite noise; for a release without noise say `noise: none`"
    )


def _check_delta(delta: float) -> None:
    if not _is_real(delta) or not 0.0 < delta < 1.0:
        raise PrivacyParameterError(
            f"delta must lie strictly between 0 and 1, got {delta!r}: Gaussian noise never reaches δ = 0, "
            "and δ = 1 promises nothing; 1e-5 is usual"
        )


def _check_mu(mu: float) -> None:
    if not _is_real(mu) or mu < 0:
        raise PrivacyParameterError(f"mu must be a number of at least 0, got {mu!r}")
