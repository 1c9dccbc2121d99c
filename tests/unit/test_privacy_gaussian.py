"""The analytic Gaussian mechanism: known values, refusals, and a high-precision oracle."""

import math

import mpmath
import pytest

from delta.errors import PrivacyParameterError
from delta.privacy.ceiling import ceiling_bits
from delta.privacy.gaussian import delta_of, epsilon_of, mu_of, mu_of_sigma, sigma_for

# The design's table at δ = 1e-5: ε, σ/2C, σ/C, μ, ceiling in bits.
TABLE = [
    (1, 3.73, 7.46, 0.268, 0.013),
    (2, 1.99, 3.99, 0.502, 0.045),
    (4, 1.08, 2.16, 0.925, 0.15),
    (8, 0.600, 1.20, 1.67, 0.50),
    (16, 0.344, 0.688, 2.91, 1.5),
]


@pytest.mark.parametrize(("epsilon", "over_2c", "over_c", "mu", "bits"), TABLE)
def test_the_designs_table(epsilon, over_2c, over_c, mu, bits):
    sigma = sigma_for(epsilon=epsilon, delta=1e-5, clip_norm=1.0)
    assert sigma / 2 == pytest.approx(over_2c, rel=3e-3)
    assert sigma == pytest.approx(over_c, rel=3e-3)
    found = mu_of_sigma(sigma=sigma, clip_norm=1.0)
    assert found == pytest.approx(mu, rel=3e-3)
    assert ceiling_bits(mu=found) == pytest.approx(bits, rel=0.04)


def oracle(mu, epsilon):
    """Balle & Wang, theorem 8, with 400 digits."""
    with mpmath.workdps(400):
        mu, epsilon, root = mpmath.mpf(mu), mpmath.mpf(epsilon), mpmath.sqrt(2)
        phi = lambda x: mpmath.erfc(-x / root) / 2  # noqa: E731
        return float(phi(mu / 2 - epsilon / mu) - mpmath.exp(epsilon) * phi(-mu / 2 - epsilon / mu))


@pytest.mark.parametrize("mu", [1e-7, 1e-4, 0.01, 0.3, 1.0, 2.9, 10.0, 60.0, 1000.0])
@pytest.mark.parametrize(
    "deviations", [-25.0, -3.0, -1.0, -0.4, 0.0, 0.7, 3.99, 4.01, 12.0, 29.9, 30.1, 37.0]
)
def test_delta_agrees_with_four_hundred_digits(mu, deviations):
    epsilon = mu * (deviations + mu / 2)
    if epsilon >= 0:
        assert delta_of(mu=mu, epsilon=epsilon) == pytest.approx(oracle(mu, epsilon), rel=1e-9, abs=1e-307)


def test_extremes_neither_overflow_nor_underflow():
    assert delta_of(mu=0.0, epsilon=1.0) == 0.0
    assert delta_of(mu=math.inf, epsilon=1.0) == 1.0
    assert delta_of(mu=1e-9, epsilon=1e4) == 0.0
    assert delta_of(mu=1e3, epsilon=1.0) == 1.0
    assert delta_of(mu=1e-300, epsilon=1e300) == 0.0
    assert epsilon_of(mu=0.0, delta=1e-5) == 0.0
    assert epsilon_of(mu=1e-6, delta=0.5) == 0.0
    assert epsilon_of(mu=math.inf, delta=1e-5) == math.inf
    assert epsilon_of(mu=1e3, delta=1e-300) > 5e5


@pytest.mark.parametrize("epsilon", [0, -1.0, math.nan, math.inf, True, "8"])
def test_wrong_epsilon_is_refused_with_the_reason(epsilon):
    with pytest.raises(PrivacyParameterError, match=r"epsilon must be a finite number above 0.*noise: none"):
        sigma_for(epsilon=epsilon, delta=1e-5, clip_norm=1.0)


@pytest.mark.parametrize("delta", [0, 1, -1e-5, 2.0, math.nan, False])
def test_wrong_delta_is_refused_with_the_reason(delta):
    with pytest.raises(PrivacyParameterError, match=r"delta must lie strictly between 0 and 1.*1e-5"):
        mu_of(epsilon=1.0, delta=delta)
    with pytest.raises(PrivacyParameterError, match="delta must lie"):
        epsilon_of(mu=1.0, delta=delta)


@pytest.mark.parametrize("clip_norm", [0, -1.0, math.nan, math.inf])
def test_wrong_clip_norm_is_refused_with_the_reason(clip_norm):
    with pytest.raises(PrivacyParameterError, match=r"clip_norm must be a finite number above 0.*L2 norm"):
        sigma_for(epsilon=1.0, delta=1e-5, clip_norm=clip_norm)
    with pytest.raises(PrivacyParameterError, match="clip_norm"):
        mu_of_sigma(sigma=1.0, clip_norm=clip_norm)


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_wrong_sigma_mu_and_epsilon_at_delta_of(value):
    with pytest.raises(PrivacyParameterError, match="sigma"):
        mu_of_sigma(sigma=value, clip_norm=1.0)
    with pytest.raises(PrivacyParameterError, match="mu"):
        delta_of(mu=value, epsilon=1.0)
    with pytest.raises(PrivacyParameterError, match="epsilon"):
        delta_of(mu=1.0, epsilon=value)
    with pytest.raises(PrivacyParameterError, match="mu"):
        ceiling_bits(mu=value)
