"""The statistics of the audit: exact tails, limits, the bound on μ, the one-run bound."""

import math
from statistics import NormalDist

import mpmath
import numpy as np
import pytest

from delta.attacks.audit.binomial import (
    clopper_pearson_lower,
    clopper_pearson_upper,
    fisher_above,
    tail_above,
    tail_below,
    two_sided,
)
from delta.attacks.audit.bound import bound_of, most_certifiable_mu, mu_lower_bound, samples_needed
from delta.attacks.audit.faults import FAULTS, norm_fault
from delta.attacks.audit.one_run import epsilon_lower_bound, guess_coins, one_run_p_value
from delta.attacks.audit.power import Rate, rejection_rate, simulated_bound
from delta.errors import ConfigError
from delta.privacy.gaussian import mu_of

Φ = NormalDist().cdf


def _exact_tail(k, n, p):
    p = mpmath.mpf(p)
    return sum(mpmath.binomial(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


@pytest.mark.parametrize(
    ("k", "n", "p"),
    [(3, 10, 0.2), (0, 5, 0.4), (5, 5, 0.4), (60, 200, 0.25), (1, 300, 1e-9), (299, 300, 0.9)],
)
def test_tails_are_exact(k, n, p):
    assert tail_above(k, n, p) == pytest.approx(float(_exact_tail(k, n, p)), rel=1e-10)
    assert tail_below(k, n, p) == pytest.approx(float(1 - _exact_tail(k + 1, n, p)), rel=1e-9)


@pytest.mark.parametrize("k", [22_000, 22_330, 22_600, 23_500])
def test_tails_of_many_trials_agree_with_another_implementation(k):
    stats = pytest.importorskip("scipy.stats")
    n, p = 50_000, 0.4466
    assert tail_above(k, n, p) == pytest.approx(stats.binom.sf(k - 1, n, p), rel=1e-8)
    assert tail_below(k, n, p) == pytest.approx(stats.binom.cdf(k, n, p), rel=1e-8)
    upper = clopper_pearson_upper(k, n, alpha=0.02)
    assert upper == pytest.approx(stats.beta.ppf(0.98, k + 1, n - k), rel=1e-9)


@pytest.mark.parametrize(
    ("k", "n", "alpha"), [(0, 50, 0.05), (3, 50, 0.025), (49, 50, 0.01), (400, 900, 0.02)]
)
def test_clopper_pearson_is_the_quantile_of_a_beta_law(k, n, alpha):
    upper = clopper_pearson_upper(k, n, alpha=alpha)
    # The limit is the 1 − α quantile of Beta(k + 1, n − k).
    assert float(mpmath.betainc(k + 1, n - k, 0, upper, regularized=True)) == pytest.approx(
        1 - alpha, abs=1e-10
    )
    assert clopper_pearson_lower(n - k, n, alpha=alpha) == pytest.approx(1 - upper)


def test_clopper_pearson_without_successes_has_a_closed_form():
    assert clopper_pearson_upper(0, 100, alpha=0.05) == pytest.approx(1 - 0.05**0.01)
    assert clopper_pearson_upper(100, 100, alpha=0.05) == 1.0


def test_a_two_sided_p_value_is_at_most_one():
    assert two_sided(5, 10, 0.5) == 1.0
    assert two_sided(0, 20, 0.5) == pytest.approx(2 * 0.5**20)


@pytest.mark.parametrize(
    "table", [(3, 10, 1, 12), (0, 5, 2, 9), (7, 7, 0, 8), (40, 100, 22, 90), (0, 0, 3, 4)]
)
def test_fishers_exact_test(table):
    stats = pytest.importorskip("scipy.stats")
    k, n, other, m = table
    assert fisher_above(*table) == pytest.approx(stats.hypergeom.sf(k - 1, n + m, k + other, n), rel=1e-9)


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="5 of 4"):
        tail_above(5, 4, 0.5)


@pytest.mark.parametrize("mu", [0.1, 0.268, 1.67, 5.0])
def test_the_bound_inverts_the_optimal_gaussian_test(mu):
    # The test at the middle between N(0, 1) and N(μ, 1) errs with Φ(−μ/2) both ways.
    assert mu_lower_bound(fpr_upper=Φ(-mu / 2), fnr_upper=Φ(-mu / 2)) == pytest.approx(mu)
    assert mu_lower_bound(fpr_upper=Φ(-mu - 1), fnr_upper=Φ(1)) == pytest.approx(mu)


def test_a_test_that_tells_nothing_bounds_nothing():
    assert mu_lower_bound(fpr_upper=0.6, fnr_upper=0.6) == 0.0
    assert mu_lower_bound(fpr_upper=1.0, fnr_upper=1e-9) == 0.0


def test_the_bound_approaches_the_true_mu_from_below_and_takes_either_direction():
    generator = np.random.default_rng(0)
    a, b = generator.normal(1.5, 1, 40_000), generator.normal(0, 1, 40_000)
    found = bound_of(a, b, alpha=0.05)
    assert 1.4 < found.mu < 1.5
    assert found.above
    mirrored = bound_of(b, a, alpha=0.05)
    assert 1.4 < mirrored.mu < 1.5
    assert not mirrored.above


def test_the_bound_counts_only_the_other_half():
    a, b = np.array([9.0, 0.0] * 50), np.array([0.0, 9.0] * 50)  # the halves contradict each other
    assert bound_of(a, b, alpha=0.05).mu == 0.0


def test_what_a_number_of_samples_can_certify():
    most = most_certifiable_mu(1000, alpha=0.04)
    assert most == pytest.approx(-2 * NormalDist().inv_cdf(1 - 0.02 ** (1 / 500)))
    needed = samples_needed(most, alpha=0.04)
    assert abs(needed - 1000) <= 2
    assert bound_of(np.ones(1000), np.zeros(1000), alpha=0.04).mu == pytest.approx(most)


def test_simulated_honest_audits_are_not_rejected():
    mu = mu_of(epsilon=1.0, delta=1e-5)
    rate, mean = rejection_rate(mu=mu, fault=None, samples=2000, confidence=0.95, seeds=range(60))
    assert rate.hits <= 3
    assert mean < mu


def test_simulated_power_grows_with_the_fault():
    mu = mu_of(epsilon=4.0, delta=1e-5)
    rates = [
        rejection_rate(mu=mu, fault=norm_fault(f), samples=1000, confidence=0.95, seeds=range(20))[0].hits
        for f in (1.05, 2.0)
    ]
    assert rates[0] < rates[1] == 20


def test_two_fresh_asks_are_worth_more_than_one():
    mu = mu_of(epsilon=1.0, delta=1e-5)
    draw = [
        simulated_bound(
            mu=mu, fault=fault, samples=200_000, confidence=0.95, generator=np.random.default_rng(1)
        )
        for fault in (None, FAULTS["fresh-retry"])
    ]
    assert draw[0] < mu < draw[1]


def test_a_rate_says_its_limits():
    value = Rate(95, 100).to_json()
    assert value["rate"] == 0.95
    assert value["lower_95"] < 0.95 < value["upper_95"]


def test_the_one_run_bound_without_delta_is_a_binomial_tail():
    p = one_run_p_value(canaries=200, guesses=100, correct=80, epsilon=1.0, delta=0.0)
    assert p == pytest.approx(float(_exact_tail(80, 100, 1 / (1 + math.exp(-1.0)))), rel=1e-9)


def test_the_delta_term_is_the_theorem_written_out():
    m, r, v, epsilon, delta = 50, 20, 15, 0.7, 1e-3
    q = 1 / (1 + math.exp(-epsilon))
    beta = _exact_tail(v, r, q)
    worst = max((_exact_tail(v - i, r, q) - beta) / i for i in range(1, v + 1))
    p = one_run_p_value(canaries=m, guesses=r, correct=v, epsilon=epsilon, delta=delta)
    assert p == pytest.approx(float(beta + 2 * m * delta * worst), rel=1e-9)


def test_the_one_run_bound_holds_and_is_nearly_tight_on_randomised_response():
    epsilon, m, runs = 1.0, 400, 2000
    generator = np.random.default_rng(2)
    right = generator.binomial(m, 1 / (1 + math.exp(-epsilon)), size=runs)
    values, counts = np.unique(right, return_counts=True)
    p = np.array(
        [one_run_p_value(canaries=m, guesses=m, correct=int(v), epsilon=epsilon, delta=0.0) for v in values]
    )
    for alpha in (0.05, 0.2):
        false = counts[p < alpha].sum() / runs
        assert 0.6 * alpha < false < alpha + 3 * math.sqrt(alpha / runs)
    below = np.array(
        [one_run_p_value(canaries=m, guesses=m, correct=int(v), epsilon=0.7, delta=0.0) for v in values]
    )
    assert counts[below < 0.05].sum() / runs > 0.8  # a claim of 0.7 falls


def test_the_one_run_bound_holds_with_a_delta_that_gives_everything_away():
    # With probability mδ all coins are told at once: every coin's own (ε, δ) still holds.
    epsilon, m, delta, runs = 1.0, 100, 5e-4, 4000
    generator = np.random.default_rng(3)
    right = generator.binomial(m, 1 / (1 + math.exp(-epsilon)), size=runs)
    right[generator.random(runs) < delta] = m
    p = np.array(
        [one_run_p_value(canaries=m, guesses=m, correct=int(v), epsilon=epsilon, delta=delta) for v in right]
    )
    assert (p < 0.05).mean() <= 0.05


def test_more_right_guesses_certify_more():
    bounds = [
        epsilon_lower_bound(canaries=200, guesses=100, correct=v, delta=1e-5, confidence=0.95).epsilon
        for v in (50, 70, 90, 100)
    ]
    assert bounds[0] == 0.0
    assert bounds == sorted(bounds)
    assert bounds[3] > 3


def test_guesses_go_by_the_largest_scores():
    scores = np.array([3.0, -0.1, -5.0, 0.2])
    coins = np.array([True, True, False, False])
    assert guess_coins(scores, coins, guesses=2) == (2, 2)
    assert guess_coins(scores, coins, guesses=4) == (4, 2)


def test_contradictory_counts_are_refused():
    with pytest.raises(ConfigError, match="cannot be"):
        one_run_p_value(canaries=10, guesses=20, correct=5, epsilon=1.0, delta=0.0)
