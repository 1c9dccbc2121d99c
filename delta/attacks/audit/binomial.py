"""Exact binomial tails and the confidence limits that rest on them, without further packages."""

from __future__ import annotations

import math

from delta.errors import ConfigError

__all__ = [
    "clopper_pearson_lower",
    "clopper_pearson_upper",
    "fisher_above",
    "tail_above",
    "tail_below",
    "two_sided",
]

_TINY, _PRECISION, _MOST_TERMS = 1e-300, 1e-15, 100_000


def tail_above(k: int, n: int, p: float) -> float:
    """P[Bin(n, p) ≥ k]."""
    _check_counts(k, n)
    if k <= 0:
        return 1.0
    return _incomplete_beta(float(k), float(n - k + 1), p)


def tail_below(k: int, n: int, p: float) -> float:
    """P[Bin(n, p) ≤ k]."""
    _check_counts(k, n)
    if k >= n:
        return 1.0
    return _incomplete_beta(float(n - k), float(k + 1), 1.0 - p)


def two_sided(k: int, n: int, p: float) -> float:
    """Twice the smaller tail, at most 1: a valid p-value of `k` successes against the probability `p`."""
    return min(1.0, 2.0 * min(tail_above(k, n, p), tail_below(k, n, p)))


def fisher_above(k: int, n: int, other_k: int, other_n: int) -> float:
    """Fisher's exact test: the chance of k or more of n, given k + other_k successes in all, if both rates are one.

    Args:
        k: successes.
        n: trials.
        other_k: successes of the other group.
        other_n: its trials.
    """
    total, most = k + other_k, min(n, k + other_k)

    def choose(a: int, b: int) -> float:
        return math.lgamma(a + 1) - math.lgamma(b + 1) - math.lgamma(a - b + 1)

    whole = choose(n + other_n, total)
    start = max(k, total - other_n)
    value = math.fsum(
        math.exp(choose(n, i) + choose(other_n, total - i) - whole) for i in range(start, most + 1)
    )
    return min(1.0, value)


def clopper_pearson_upper(k: int, n: int, *, alpha: float) -> float:
    """The one-sided upper confidence limit of a rate: exceeded by the truth in at most α of all experiments.

    Clopper & Pearson 1934: the p at which P[Bin(n, p) ≤ k] = α.

    Args:
        k: successes.
        n: trials, at least 1.
        alpha: in (0, 1).
    """
    _check_counts(k, n)
    if k == n:
        return 1.0
    low, high = k / n, 1.0
    while low < (middle := 0.5 * (low + high)) < high and high - low > 1e-13 * high:
        if tail_below(k, n, middle) > alpha:
            low = middle
        else:
            high = middle
    return high


def clopper_pearson_lower(k: int, n: int, *, alpha: float) -> float:
    """The one-sided lower confidence limit of a rate."""
    return 1.0 - clopper_pearson_upper(n - k, n, alpha=alpha)


def _check_counts(k: int, n: int) -> None:
    if n < 1 or not 0 <= k <= n:
        raise ConfigError(f"a rate needs at least 1 trial and 0 to n successes, got {k} of {n}")


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b) (DLMF 8.17.22), by its continued fraction."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (a + 1.0) / (a + b + 2.0):  # beyond the mean the fraction converges for the other tail
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    front = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return min(1.0, math.exp(front) / a * _fraction(a, b, x))


def _fraction(a: float, b: float, x: float) -> float:
    """1 / (1 + d₁/(1 + d₂/(1 + …))), by the modified Lentz algorithm."""
    c, d = 1.0, 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for term in (even, odd):
            d = 1.0 / _away_from_zero(1.0 + term * d)
            c = _away_from_zero(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < _PRECISION:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
