"""A lower bound on μ from the errors of a test between two neighbouring records.

A mechanism is μ-GDP only if every test that tells a record from its neighbour has
FNR ≥ Φ(Φ⁻¹(1 − FPR) − μ) (Dong, Roth & Su 2019, arXiv 1905.02383). Read backwards, a test with those error
rates shows μ ≥ Φ⁻¹(1 − FPR) − Φ⁻¹(FNR); with upper confidence limits in the place of the rates that is a
lower bound on μ which holds with the stated confidence (Nasr et al. 2023, arXiv 2302.07956). One such bound
rejects a claim that is off by a factor which bounds on ε at a fixed δ do not see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from delta.attacks.audit.binomial import clopper_pearson_upper
from delta.errors import ConfigError

__all__ = ["MuBound", "bound_of", "most_certifiable_mu", "mu_lower_bound", "samples_needed"]

_NORMAL = NormalDist()
_EDGE = 1e-300

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class MuBound:
    """What one test showed.

    Attributes:
        mu: the lower bound, at least 0.
        threshold: on the score, chosen on other samples than those that are counted here.
        above: whether records with a score of at least the threshold were taken for the first image.
        false_positives: of `negatives`, and the upper confidence limit of their rate.
        misses: of `positives`, likewise.
    """

    mu: float
    threshold: float
    above: bool
    false_positives: int
    negatives: int
    fpr_upper: float
    misses: int
    positives: int
    fnr_upper: float


def mu_lower_bound(*, fpr_upper: float, fnr_upper: float) -> float:
    """Φ⁻¹(1 − FPR) − Φ⁻¹(FNR), at least 0: the least μ that a test of these error rates allows.

    Args:
        fpr_upper: upper limit of the rate of false positives, in (0, 1].
        fnr_upper: upper limit of the rate of misses, in (0, 1].
    """
    if max(fpr_upper, fnr_upper) >= 1.0:
        return 0.0
    # Φ⁻¹(1 − x) = −Φ⁻¹(x), without the rounding of 1 − x.
    return max(0.0, -_quantile(fpr_upper) - _quantile(fnr_upper))


def bound_of(first: Scores, second: Scores, *, alpha: float) -> MuBound:
    """The lower bound that the scores of two images' records show: threshold on one half, rates on the other.

    Every threshold is tried on the even samples, in both directions; the odd ones are counted once. The bound
    is above the true μ in at most `alpha` of all experiments, whatever the score is.

    Args:
        first: scores of the first image's records, in the order of their release, `[n]`.
        second: of the other image's, `[m]`.
        alpha: the probability of a false bound, shared out equally to the two rates.

    Raises:
        ConfigError: fewer than 4 samples of either.
    """
    if min(len(first), len(second)) < 4:
        raise ConfigError("a bound needs at least 4 samples of each image; ask for more")
    threshold, above = _best_threshold(first[0::2], second[0::2], alpha=alpha)
    positives, negatives = first[1::2], second[1::2]
    called = (positives >= threshold) == above
    falsely = (negatives >= threshold) == above
    misses, false_positives = int((~called).sum()), int(falsely.sum())
    fnr = clopper_pearson_upper(misses, len(positives), alpha=alpha / 2)
    fpr = clopper_pearson_upper(false_positives, len(negatives), alpha=alpha / 2)
    return MuBound(
        mu=mu_lower_bound(fpr_upper=fpr, fnr_upper=fnr),
        threshold=threshold,
        above=above,
        false_positives=false_positives,
        negatives=len(negatives),
        fpr_upper=fpr,
        misses=misses,
        positives=len(positives),
        fnr_upper=fnr,
    )


def most_certifiable_mu(samples: int, *, alpha: float) -> float:
    """The bound of a test without one error on `samples` of each image: nothing above it can be rejected."""
    limit = clopper_pearson_upper(0, max(1, samples // 2), alpha=alpha / 2)
    return mu_lower_bound(fpr_upper=limit, fnr_upper=limit)


def samples_needed(mu: float, *, alpha: float) -> int:
    """Samples of each image from which a test without one error would certify μ."""
    tail = _NORMAL.cdf(-mu / 2)
    if tail <= 0.0:
        raise ConfigError(f"no number of samples certifies mu = {mu:.3g}; claim less")
    half = math.ceil(math.log(alpha / 2) / math.log1p(-tail))
    return 2 * half


def _best_threshold(first: Scores, second: Scores, *, alpha: float) -> tuple[float, bool]:
    """The threshold and direction with the largest bound on these samples; an approximate one serves a choice."""
    first, second = np.sort(first), np.sort(second)
    candidates = np.unique(np.concatenate([first, second]))
    candidates = np.append(candidates, math.nextafter(float(candidates[-1]), math.inf))
    below_first = np.searchsorted(first, candidates) / len(first)
    below_second = np.searchsorted(second, candidates) / len(second)
    z = -_quantile(alpha / 2)
    best = (-math.inf, 0, True)
    for above, misses, falsely in (
        (True, below_first, 1.0 - below_second),
        (False, 1.0 - below_first, below_second),
    ):
        value = -_quantiles(_wilson(misses, len(first), z)) - _quantiles(_wilson(falsely, len(second), z))
        at = int(value.argmax())
        if value[at] > best[0]:
            best = (float(value[at]), at, above)
    return float(candidates[best[1]]), best[2]


def _wilson(rate: Scores, n: int, z: float) -> Scores:
    """Wilson's upper limit of rates."""
    centre = rate + z * z / (2 * n)
    spread = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return np.asarray((centre + spread) / (1 + z * z / n))


def _quantile(p: float) -> float:
    return _NORMAL.inv_cdf(min(max(p, _EDGE), 1 - 1e-16))


def _quantiles(p: Scores) -> Scores:
    """Φ⁻¹ of many rates; they repeat, so each is computed once."""
    values, places = np.unique(p, return_inverse=True)
    return np.array([_quantile(float(value)) for value in values])[places]
