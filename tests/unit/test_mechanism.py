"""The law of the one-bit mechanism, in exact arithmetic and in frequencies of keyed releases."""

import math

import numpy as np
import pytest
import torch

from delta.errors import InputError, PrivacyParameterError
from delta.release.bounding import normalise
from delta.release.ids import ReleaseIdentity
from delta.release.mechanism import one_bit
from delta.release.noise import NoiseKey

WORD = 2**64


def bit(value, sigma, u):
    m = torch.tensor([[value]], dtype=torch.float64)
    uniforms = torch.from_numpy(np.array([[u]], dtype=np.uint64))
    return bool(one_bit(m, sigma=sigma, uniforms=uniforms))


def count_of_ones(value, sigma):
    """How many of the 2⁶⁴ integers give 1, by bisection on the border between them."""
    first, last = bit(value, sigma, 0), bit(value, sigma, WORD - 1)
    if first == last:
        return WORD if first else 0
    low, high = 0, WORD - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if bit(value, sigma, middle) == first else (low, middle)
    return high if first else WORD - high


@pytest.mark.parametrize("z", [0.0, 1e-18, 0.3, 1.0, 2.5, 6.0, 8.2, 9.5, 20.0, 40.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_law_holds_within_2_to_the_minus_52_tails_included(z, sign):
    expected = 0.5 * math.erfc(-sign * z / math.sqrt(2))
    assert abs(count_of_ones(sign * z * 1.7, 1.7) / WORD - expected) <= 2.0**-52
    small = 0.5 * math.erfc(z / math.sqrt(2))
    rare = count_of_ones(-z * 1.7, 1.7)
    assert abs(rare - small * WORD) <= 1 + 1e-12 * small * WORD, "the small tail is exact to one integer"
    assert count_of_ones(z * 1.7, 1.7) == WORD - rare, "and the large one is its complement"


def test_a_bit_never_falls_as_the_message_rises():
    m = torch.linspace(-5, 5, 4001, dtype=torch.float64)
    for u in (0, 1, 2**20, 2**62, 2**63 - 1, 2**63, 2**63 + 1, WORD - 2**40, WORD - 1):
        uniforms = torch.from_numpy(np.full((1, 4001), u, dtype=np.uint64))
        bits = one_bit(m[None], sigma=1.0, uniforms=uniforms)[0].int()
        assert bool((bits.diff() >= 0).all())


def test_without_noise_the_bit_is_the_sign():
    m = torch.tensor([[-1.0, -5e-324, -0.0, 0.0, 5e-324, 1.0]], dtype=torch.float64)
    assert one_bit(m, sigma=None, uniforms=None).tolist() == [[False, False, True, True, True, True]]


def test_wrong_arguments_are_refused():
    m, u = torch.zeros(1, 2, dtype=torch.float64), torch.from_numpy(np.zeros((1, 2), dtype=np.uint64))
    for sigma in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(PrivacyParameterError, match="sigma"):
            one_bit(m, sigma=sigma, uniforms=u)
    for uniforms in (None, u[:, :1], u.to(torch.int64)):
        with pytest.raises(InputError, match="uint64"):
            one_bit(m, sigma=1.0, uniforms=uniforms)
    with pytest.raises(InputError, match="float64"):
        one_bit(m.float(), sigma=1.0, uniforms=u)
    for bad in (float("nan"), float("inf")):
        for sigma in (None, 1.0):
            with pytest.raises(InputError, match="NaN or infinite"):
                one_bit(torch.full((1, 2), bad, dtype=torch.float64), sigma=sigma, uniforms=u)


RELEASES, VALUES, SIGMA = 4000, 64, 0.25
FALSE_ALARM = 1e-6
"""Chance that the frequency test fails on a right mechanism under a random key; the keys here are fixed."""


def raw_message():
    """Some message before bounding: norm 3, so that C = 1 must scale it down."""
    m = torch.randn(1, VALUES, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return normalise(m, 3.0)


def chi_squared(ones, expected):
    """Σ (observed − expected)²/variance over the values: χ² with VALUES degrees of freedom, nearly."""
    return float(((ones - RELEASES * expected) ** 2 / (RELEASES * expected * (1 - expected))).sum())


def chi_squared_limit():
    """The 1 − FALSE_ALARM quantile by Wilson and Hilferty (within 1 % here), and 5 % on top of it."""
    z = 4.7534  # Φ⁻¹(1 − 1e-6)
    return 1.05 * VALUES * (1 - 2 / (9 * VALUES) + z * math.sqrt(2 / (9 * VALUES))) ** 3


def statistic(bounded, sigma, seed=0):
    """Draw RELEASES keyed releases of one message, compare frequencies with the declared law (C = 1, σ)."""
    key = NoiseKey(bytes([seed]) * 32)
    uniforms = torch.stack(
        [key.uniforms(ReleaseIdentity("s", str(i), b"d" * 32, "h", "m"), VALUES) for i in range(RELEASES)]
    )
    bits = one_bit(bounded.expand(RELEASES, -1), sigma=sigma, uniforms=uniforms)
    law = torch.special.ndtr(normalise(raw_message(), 1.0)[0] / SIGMA)
    return chi_squared(bits.sum(0), law)


@pytest.mark.parametrize("seed", range(3))
def test_bit_frequencies_follow_the_law(seed):
    assert statistic(normalise(raw_message(), 1.0), SIGMA, seed) < chi_squared_limit()


@pytest.mark.parametrize(
    ("bounded", "sigma"),
    [
        pytest.param(normalise(raw_message(), 2.0), SIGMA, id="doubled sensitivity"),
        pytest.param(raw_message(), SIGMA, id="missing scaling"),
        pytest.param(normalise(raw_message(), 1.0), SIGMA * 1.3, id="sigma too large"),
        pytest.param(normalise(raw_message(), 1.0), SIGMA / 1.3, id="sigma too small"),
    ],
)
def test_the_frequency_test_catches_a_wrong_mechanism(bounded, sigma):
    assert statistic(bounded, sigma) > 1.5 * chi_squared_limit()


def test_the_limit_is_the_stated_false_alarm_rate():
    draws = np.random.default_rng(0).chisquare(VALUES, 2_000_000)
    assert (draws > chi_squared_limit()).mean() <= 2 * FALSE_ALARM
    assert (draws > chi_squared_limit() / 1.05).mean() <= 10 * FALSE_ALARM
