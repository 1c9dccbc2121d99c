"""The in-memory ledger: budgets, refusals that name nobody, and threads."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from delta.errors import BudgetExceededError, PrivacyParameterError
from delta.privacy.events import GaussianRelease, NonPrivateRelease, RandomizedResponseLabel
from delta.privacy.ledger import UNLIMITED, Debit, InMemoryLedger, Ledger, Spent


def debit(number, subject="ada", mu=1.0):
    return Debit(subject, f"{number:064x}", NonPrivateRelease() if mu is None else GaussianRelease(mu))


def test_it_spends_up_to_the_budget_and_not_beyond():
    ledger: Ledger = InMemoryLedger(budget=2.0)
    assert ledger.budget == 2.0
    assert ledger.debit([debit(i) for i in range(4)]) == 4
    assert ledger.spent("ada").mu == 2.0
    with pytest.raises(BudgetExceededError, match=r"spent μ = 2 of 2 .* make it 2\.236; .*raise the budget"):
        ledger.debit([debit(4)])
    assert ledger.debit([debit(3), debit(0)]) == 0  # stored releases still go out
    assert ledger.debit([debit(4, subject="bo")]) == 1


def test_a_rounded_budget_of_root_two_takes_two_releases():
    assert InMemoryLedger(budget=math.sqrt(2.0)).debit([debit(0), debit(1)]) == 2


def test_one_overdraft_refuses_the_whole_batch():
    ledger = InMemoryLedger(budget=1.0)
    with pytest.raises(BudgetExceededError):
        ledger.debit([debit(0, "bo"), debit(1), debit(2)])
    assert ledger.entries() == ()
    assert ledger.spent("bo") == Spent()


def test_refusals_name_no_subject():
    ledger = InMemoryLedger(budget=0.5)
    with pytest.raises(BudgetExceededError) as refusal:
        ledger.debit([debit(0, subject="ada-lovelace")])
    assert "ada" not in str(refusal.value)


def test_the_same_release_id_is_charged_to_each_subject():
    ledger = InMemoryLedger(budget=1.0)
    assert ledger.debit([debit(7, "ada"), debit(7, "bo")]) == 2
    assert ledger.spent("ada").mu == ledger.spent("bo").mu == 1.0


def test_a_release_id_stands_for_one_event():
    ledger = InMemoryLedger(budget=9.0)
    ledger.debit([debit(0)])
    with pytest.raises(PrivacyParameterError, match="release_hash"):
        ledger.debit([debit(1), debit(0, mu=2.0)])
    assert len(ledger.entries()) == 1


def test_no_noise_needs_an_unlimited_budget():
    with pytest.raises(BudgetExceededError, match="unlimited"):
        InMemoryLedger(budget=1e6).debit([debit(0, mu=None)])
    ledger = InMemoryLedger(budget=UNLIMITED)
    ledger.debit([debit(0, mu=None), debit(1)])
    assert ledger.spent("ada") == Spent(mu=math.inf, joint_mu=math.inf, releases=2)


def test_labels_are_beside_releases_and_count():
    ledger = InMemoryLedger(budget=UNLIMITED)
    label = Debit("ada", "f" * 64, RandomizedResponseLabel(math.log(3.0)))
    ledger.debit([debit(0), label, label])
    spent = ledger.spent("ada")
    assert (spent.mu, spent.releases, spent.labels) == (1.0, 1, 1)
    assert spent.label_epsilon == pytest.approx(math.log(3.0))
    assert spent.joint_mu == pytest.approx(math.hypot(1.0, 2 * 0.6744897501960817))
    with pytest.raises(BudgetExceededError):
        InMemoryLedger(budget=1.0).debit([debit(0), label])


def test_replay_refuses_nothing_that_happened():
    ledger = InMemoryLedger(budget=1.0, entries=[debit(i) for i in range(9)])
    assert ledger.spent("ada").mu == 3.0
    assert ledger.debit([debit(8)]) == 0
    with pytest.raises(BudgetExceededError):
        ledger.debit([debit(9)])


@pytest.mark.parametrize("budget", [0, -1.0, math.inf, math.nan, "much", True])
def test_wrong_budgets_are_refused(budget):
    with pytest.raises(PrivacyParameterError, match="unlimited"):
        InMemoryLedger(budget=budget)


@pytest.mark.parametrize("release", ["", "photo-of-ada.jpg", "ab", "A" * 64, "g" * 64])
def test_a_release_id_cannot_name_a_record(release):
    with pytest.raises(PrivacyParameterError, match="HMAC"):
        Debit("ada", release, GaussianRelease(1.0))


def test_threads_never_overdraw():
    ledger = InMemoryLedger(budget=10.0)

    def spend(number):
        try:
            return ledger.debit([debit(number), debit(number + 1000)])
        except BudgetExceededError:
            return 0

    with ThreadPoolExecutor(8) as pool:
        entered = sum(pool.map(spend, range(200)))
    assert entered == len(ledger.entries()) == 100
    assert ledger.spent("ada").mu == 10.0
