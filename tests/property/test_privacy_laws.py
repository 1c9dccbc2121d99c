"""Laws of the Gaussian mechanism, the accountant and the ledger, against naive oracles."""

import math
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta.errors import BudgetExceededError, PrivacyParameterError
from delta.privacy.accountant import GdpAccountant, event_mu, label_mu
from delta.privacy.events import Composed, GaussianRelease, NonPrivateRelease, RandomizedResponseLabel
from delta.privacy.gaussian import delta_of, epsilon_of, mu_of, mu_of_sigma, sigma_for
from delta.privacy.ledger import UNLIMITED, Debit, InMemoryLedger

epsilons = st.floats(-3, 4).map(lambda e: 10.0**e)
deltas = st.floats(-12, -1).map(lambda e: 10.0**e)
mus = st.floats(-4, 3).map(lambda e: 10.0**e)
releases = mus.map(GaussianRelease)
leaves = st.one_of(releases, st.floats(1e-3, 20.0).map(RandomizedResponseLabel), st.just(NonPrivateRelease()))
events = st.recursive(
    leaves,
    lambda inner: st.builds(Composed, st.lists(inner, max_size=3).map(tuple), st.integers(0, 5)),
    max_leaves=6,
)


@given(epsilon=epsilons, delta=deltas)
def test_mu_and_epsilon_are_inverse(epsilon, delta):
    mu = mu_of(epsilon=epsilon, delta=delta)
    assert epsilon_of(mu=mu, delta=delta) == pytest.approx(epsilon, rel=1e-8)
    assert delta_of(mu=mu, epsilon=epsilon) == pytest.approx(delta, rel=1e-6)


@given(mu=mus, delta=deltas)
def test_epsilon_and_mu_are_inverse(mu, delta):
    epsilon = epsilon_of(mu=mu, delta=delta)
    if epsilon == 0.0:
        assert delta_of(mu=mu, epsilon=0.0) <= delta * (1 + 1e-9)
    elif epsilon > 1e-3 * mu:  # nearer to 0 the inverse is ill-conditioned
        assert mu_of(epsilon=epsilon, delta=delta) == pytest.approx(mu, rel=1e-8)


@given(epsilon=epsilons, delta=deltas, clip_norm=st.floats(1e-3, 1e3))
def test_sigma_round_trip(epsilon, delta, clip_norm):
    sigma = sigma_for(epsilon=epsilon, delta=delta, clip_norm=clip_norm)
    assert epsilon_of(mu=mu_of_sigma(sigma=sigma, clip_norm=clip_norm), delta=delta) == pytest.approx(
        epsilon, rel=1e-8
    )


@given(mu=mus, factor=st.floats(1.01, 10.0), delta=deltas)
def test_more_noise_never_costs_more(mu, factor, delta):
    assert epsilon_of(mu=mu, delta=delta) <= epsilon_of(mu=mu * factor, delta=delta)


def accountant():
    return GdpAccountant(relation="replace-one")


@given(event=events, count=st.integers(0, 40))
def test_count_times_is_count_single_ones(event, count):
    at_once, one_by_one = accountant().compose(event, count), accountant()
    for _ in range(count):
        one_by_one.compose(event)
    assert at_once.mu == one_by_one.mu


@given(parts=st.lists(events, max_size=5), seed=st.randoms(use_true_random=False))
def test_order_and_nesting_do_not_matter(parts, seed):
    flat = accountant()
    for part in seed.sample(parts, len(parts)):
        flat.compose(part)
    assert flat.mu == accountant().compose(Composed(tuple(parts))).mu


@given(event=events)
def test_the_ledger_replays(event):
    first = accountant().compose(event, 2)
    second = accountant()
    for past, count in first.ledger:
        second.compose(past, count)
    assert second.mu == first.mu


@given(epsilon=st.floats(1e-3, 30.0))
def test_a_labels_mu_dominates_its_epsilon(epsilon):
    """At every ε′ below ε, pure DP's δ(ε′) = (e^ε − e^ε′)/(1 + e^ε) is at most that of μ_L-GDP."""
    mu = label_mu(epsilon=epsilon)
    for share in (0.0, 0.3, 0.7, 0.99):
        other = share * epsilon
        pure = -math.expm1(other - epsilon) / (1.0 + math.exp(-epsilon))
        assert pure <= delta_of(mu=mu, epsilon=other) * (1 + 1e-7)
    assert event_mu(RandomizedResponseLabel(epsilon)) == pytest.approx(mu)


def release_id(number):
    return f"{number:064x}"


debits = st.builds(
    Debit,
    subject=st.sampled_from(["", "ada", "bo"]),
    release_id=st.integers(0, 12).map(release_id),
    event=st.sampled_from([GaussianRelease(0.5), GaussianRelease(1.25), RandomizedResponseLabel(1.0)]),
)


class NaiveLedger:
    """Recomputes everything from the set of its entries, each time."""

    def __init__(self, budget):
        self.budget, self.seen = budget, {}

    def debit(self, batch):
        after = dict(self.seen)
        for debit in batch:
            if after.setdefault((debit.subject, debit.release_id), debit.event) != debit.event:
                return PrivacyParameterError
        sums = defaultdict(float)
        for (subject, _), event in after.items():
            sums[subject] += event_mu(event) ** 2
        grown = {subject for subject, _ in after.keys() - self.seen.keys()}
        if any(math.sqrt(sums[subject]) > self.budget * (1 + 1e-9) for subject in grown):
            return BudgetExceededError
        self.seen = after
        return None

    def mu(self, subject):
        return math.sqrt(sum(event_mu(event) ** 2 for (who, _), event in self.seen.items() if who == subject))


@settings(max_examples=200)
@given(
    batches=st.lists(st.lists(debits, max_size=6), max_size=8), budget=st.sampled_from([0.6, 1.3, 2.0, 9.0])
)
def test_the_ledger_is_the_naive_one(batches, budget):
    ledger, naive = InMemoryLedger(budget=budget), NaiveLedger(budget)
    for batch in batches:
        before = ledger.entries()
        expected = naive.debit(batch)
        if expected is None:
            assert ledger.debit(batch) == len(naive.seen) - len(before)
            assert ledger.debit(batch) == 0  # a stored release costs nothing
        else:
            with pytest.raises(expected):
                ledger.debit(batch)
            assert ledger.entries() == before
    for subject in ("", "ada", "bo", "nobody"):
        assert ledger.spent(subject).joint_mu == pytest.approx(naive.mu(subject))
    again = InMemoryLedger(budget=UNLIMITED, entries=ledger.entries())
    assert [again.spent(s) for s in ("", "ada", "bo")] == [ledger.spent(s) for s in ("", "ada", "bo")]
