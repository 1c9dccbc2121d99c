"""ε of DP-SGD, from opacus's accountants.

The unit is a record of the training set, central, add or remove one; batches are Poisson samples. PRV accounting
(Gopi, Lee & Wutschitz 2021, arXiv 2106.02848) is tight and gives an upper bound, about half a percent above; where ε is
beyond all meaning it is slow and overflows, and Rényi accounting (Mironov, Talwar & Zhang 2019, arXiv 1908.10530),
an upper bound too, takes its place.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import numpy as np

from delta.errors import MethodError, PrivacyParameterError

__all__ = ["epsilon_of_steps", "needs_opacus", "noise_multiplier_for"]

_ORDERS = (1.5, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 256, 512)
_RENYI_ABOVE = 100.0
_ERROR = 0.005  # of ε, that PRV accounting may add: it is the slower, the smaller
_SMALLEST, _LARGEST = 0.01, 1e4  # noise multipliers that are tried for a target ε
_TOLERANCE = 5e-3  # how much of a target ε may stay unspent, relative
_FINEST = 1e-6  # where the steps of the accountant's own grid are larger than that

_History = list[tuple[float, float, int]]


def needs_opacus() -> Any:  # noqa: ANN401
    """The package `opacus`, imported on first use: it takes seconds.

    Raises:
        MethodError: it is not installed.
    """
    try:
        import opacus
        import opacus.accountants
        import opacus.optimizers
        import opacus.validators
    except ImportError:
        raise MethodError(
            "method 'dp-sgd' needs the package 'opacus'; install delta-split[baselines]"
        ) from None
    return opacus


@functools.lru_cache(maxsize=1024)
def epsilon_of_steps(*, noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """The ε that so many steps have spent, at δ; infinite where the accountants give up.

    Args:
        noise_multiplier: standard deviation of the noise over the clipping norm.
        sample_rate: probability with which a step draws a record.
        steps: taken.
        delta: in (0, 1).

    Raises:
        MethodError: opacus is not installed.
    """
    if steps == 0:
        return 0.0
    history = [(noise_multiplier, sample_rate, steps)]
    rough = _renyi(history, delta)
    if rough > _RENYI_ABOVE:
        return rough
    error = min(max(_ERROR * rough, 0.001), 0.1)
    return min(rough, _asked("PRVAccountant", history, delta, eps_error=error))


def noise_multiplier_for(*, epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """A noise multiplier that keeps so many steps within ε, and spends it but for half a percent.

    Raises:
        PrivacyParameterError: ε is not above 0, or no multiplier between 0.01 and 10⁴ is what it takes.
        MethodError: opacus is not installed.
    """
    if not 0 < epsilon < math.inf:
        raise PrivacyParameterError(f"epsilon must be a finite number above 0, got {epsilon!r}")

    def rough(multiplier: float) -> float:
        return _renyi([(multiplier, sample_rate, steps)], delta)

    def tight(multiplier: float) -> float:
        return epsilon_of_steps(
            noise_multiplier=multiplier, sample_rate=sample_rate, steps=steps, delta=delta
        )

    # Rényi accounting is quick and says about where to look, from the safe side, but it cannot tell a small ε.
    high = _SMALLEST
    while rough(high) > epsilon and high < _LARGEST:
        high *= 1.25
    spent = tight(high)
    if spent > epsilon:
        raise PrivacyParameterError(
            f"no noise keeps {steps} steps within epsilon {epsilon:g} by this accounting, whose own error is 0.001; "
            "raise epsilon, or take fewer steps"
        )
    low, at_low = 0.5 * high, tight(0.5 * high)
    while at_low <= epsilon:
        high, spent = low, at_low
        low, at_low = 0.5 * low, tight(0.5 * low)
        if low < _SMALLEST:
            raise PrivacyParameterError(
                f"epsilon {epsilon:g} needs next to no noise for {steps} steps; say a noise_multiplier instead"
            )
    aim = math.log((1 - 0.5 * _TOLERANCE) * epsilon)
    while spent < (1 - _TOLERANCE) * epsilon and high - low > _FINEST * high:
        # ln ε falls almost in a line with ln of the noise; a tenth off either end keeps the bracket closing.
        drop = math.log(at_low) - math.log(max(spent, 1e-9))
        line = (math.log(at_low) - aim) / drop if at_low < math.inf else 0.5
        middle = low * (high / low) ** min(max(line, 0.1), 0.9)
        found = tight(middle)
        if found <= epsilon:
            high, spent = middle, found
        else:
            low, at_low = middle, found
    return high


def _renyi(history: _History, delta: float) -> float:
    """Over fewer orders than opacus's own 160, at a tenth of the time: still a bound, a little looser."""
    return _asked("RDPAccountant", history, delta, alphas=list(_ORDERS))


def _asked(accountant: str, history: _History, delta: float, **options: Any) -> float:  # noqa: ANN401
    """ε by one of opacus's accountants, without its notes on its own grids; infinite where it has no answer."""
    made = getattr(needs_opacus().accountants, accountant)()
    made.history = history
    with warnings.catch_warnings(), np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        try:
            found = float(made.get_epsilon(delta, **options))
        except (ValueError, RuntimeError):  # a δ too small for its arithmetic, a domain too large
            return math.inf
    return math.inf if math.isnan(found) else max(0.0, found)
