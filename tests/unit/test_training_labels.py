"""Labels as they leave: the law of keyed randomized response, its memo, and the cloud's correction for it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from delta.errors import InputError
from delta.privacy.events import RandomizedResponseLabel
from delta.privacy.ledger import Debit
from delta.release.noise import NoiseKey
from delta.training.cloud_trainer import cloud_loss
from delta.training.config import LabelConfig
from delta.training.labels import disclose_labels
from tests.training_jobs import dataset_spec, job_spec

KEY = NoiseKey(bytes(range(32)))
FLAKE = 1e-9
"""Chance that a right mechanism fails a bound below; the keys are fixed, so none does by chance."""


def _response(epsilon: float) -> LabelConfig:
    return LabelConfig(kind="randomized-response", epsilon=epsilon)


def _told(
    labels: Tensor,
    *,
    classes: int,
    epsilon: float = 1.0,
    names: list[str] | None = None,
    subjects: list[str] | None = None,
    key: NoiseKey = KEY,
) -> tuple[Tensor, list[Debit]]:
    names = [f"record {i}" for i in range(len(labels))] if names is None else names
    return disclose_labels(
        labels,
        records=names,
        subjects=[""] * len(labels) if subjects is None else subjects,
        classes=classes,
        config=_response(epsilon),
        key=key,
    )


def _tail(draws: int, rate: float, found: int) -> float:
    """P(as far from the mean as `found`, on its side), of a binomial count: summed exactly."""
    upper = found > draws * rate
    terms = range(found, draws + 1) if upper else range(found + 1)
    base = math.lgamma(draws + 1)
    return math.fsum(
        math.exp(
            base
            - math.lgamma(i + 1)
            - math.lgamma(draws - i + 1)
            + i * math.log(rate)
            + (draws - i) * math.log1p(-rate)
        )
        for i in terms
    )


def test_the_tail_is_that_of_a_binomial_count():
    assert _tail(3, 0.5, 3) == pytest.approx(1 / 8)
    assert _tail(10, 0.2, 0) == pytest.approx(0.8**10)
    assert _tail(10, 0.3, 1) == pytest.approx(0.7**10 + 10 * 0.3 * 0.7**9)


# The law


@pytest.mark.parametrize(("classes", "epsilon"), [(2, 0.5), (3, 1.0), (10, 2.0), (10, 6.0), (7, 0.01)])
def test_a_label_is_kept_as_often_as_the_mechanism_says_and_replaced_evenly(classes, epsilon):
    draws = 20_000
    true = torch.arange(draws) % classes
    told, _ = _told(true, classes=classes, epsilon=epsilon)
    rate = math.exp(epsilon) / (math.exp(epsilon) + classes - 1)
    kept = int((told == true).sum())
    assert _tail(draws, rate, kept) > FLAKE
    # Whatever the true label is, each other one takes its place equally often.
    shift = torch.bincount((told - true) % classes, minlength=classes)
    for count in shift[1:].tolist():
        assert _tail(draws, (1 - rate) / (classes - 1), count) > FLAKE
    for label in range(classes):
        own = told[true == label]
        others = torch.bincount(own, minlength=classes)
        for other in range(classes):
            expected = rate if other == label else (1 - rate) / (classes - 1)
            assert _tail(len(own), expected, int(others[other])) > FLAKE


def test_the_bounds_would_notice_a_mechanism_that_keeps_one_label_in_a_hundred_more():
    true = torch.arange(20_000) % 10
    told, _ = _told(true, classes=10, epsilon=2.0)
    spared = torch.where(torch.arange(20_000) % 15 == 0, true, told)
    rate = math.exp(2.0) / (math.exp(2.0) + 9)
    assert _tail(20_000, rate, int((spared == true).sum())) < FLAKE


def test_at_the_largest_epsilon_a_label_may_still_differ_and_a_larger_one_is_refused():
    """A finite ε whose answers never lie would be no ε at all."""
    true = torch.arange(500) % 10
    assert torch.equal(_told(true, classes=10, epsilon=30.0)[0], true)  # one in 10¹² differs

    class Lying(NoiseKey):
        def uniforms(self, identity, count):
            return torch.tensor([2**64 - 1, 0], dtype=torch.uint64)

    told, _ = disclose_labels(
        true,
        records=[str(i) for i in range(500)],
        subjects=[""] * 500,
        classes=10,
        config=LabelConfig(kind="randomized-response", epsilon=30.0),
        key=Lying(bytes(32)),
    )
    assert not bool((told == true).any())
    with pytest.raises(ValidationError, match="30"):
        LabelConfig(kind="randomized-response", epsilon=30.1)


def test_answers_of_different_records_are_independent():
    """Neighbours in a run of equal labels agree as often as two independent answers do."""
    told, _ = _told(torch.zeros(20_001, dtype=torch.int64), classes=4, epsilon=1.0)
    rate = math.exp(1.0) / (math.exp(1.0) + 3)
    agree = rate**2 + 3 * ((1 - rate) / 3) ** 2
    pairs = int((told[0:20_000:2] == told[1:20_001:2]).sum())
    assert _tail(10_000, agree, pairs) > FLAKE


# The memo


def test_telling_again_tells_the_same_in_any_order_and_any_batch():
    true = torch.arange(60) % 10
    names, subjects = [f"r{i}" for i in range(60)], [f"s{i % 7}" for i in range(60)]
    told, debits = _told(true, classes=10, names=names, subjects=subjects)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    places = order.tolist()
    again, others = _told(
        true[order], classes=10, names=[names[i] for i in places], subjects=[subjects[i] for i in places]
    )
    assert torch.equal(again, told[order])
    assert others == [debits[i] for i in places]
    for i in range(0, 60, 17):
        one, (debit,) = _told(true[i : i + 1], classes=10, names=[names[i]], subjects=[subjects[i]])
        assert (int(one), debit) == (int(told[i]), debits[i])


def test_another_key_or_record_is_answered_independently():
    true = torch.zeros(1000, dtype=torch.int64)
    told, debits = _told(true, classes=10)
    rate = math.exp(1.0) / (math.exp(1.0) + 9)
    agree = rate**2 + 9 * ((1 - rate) / 9) ** 2
    for other, entries in (
        _told(true, classes=10, key=NoiseKey(bytes(32))),
        _told(true, classes=10, names=[f"another {i}" for i in range(1000)]),
        _told(true, classes=10, subjects=["somebody"] * 1000),
        _told(true, classes=10, epsilon=1.0001),  # another mechanism
    ):
        assert _tail(1000, agree, int((other == told).sum())) > FLAKE
        assert not {d.release_id for d in entries} & {d.release_id for d in debits}


def test_a_corrected_label_is_answered_independently_and_debited_anew():
    """Otherwise the difference of two answers would tell whether the first was true."""
    before, debits = _told(torch.zeros(4000, dtype=torch.int64), classes=3)
    after, others = _told(torch.ones(4000, dtype=torch.int64), classes=3)
    assert not {d.release_id for d in debits} & {d.release_id for d in others}
    kept = math.exp(1.0) / (math.exp(1.0) + 2)
    both = int(((before == 0) & (after == 1)).sum())
    assert _tail(4000, kept**2, both) > FLAKE  # as independent coins


def test_debits_name_the_event_the_subject_and_no_record():
    true = torch.tensor([0, 1, 2, 1])
    subjects = ["ada", "bo", "ada", ""]
    _, debits = _told(true, classes=3, epsilon=1.5, subjects=subjects)
    assert [debit.subject for debit in debits] == subjects
    assert {debit.event for debit in debits} == {RandomizedResponseLabel(1.5)}
    assert len({debit.release_id for debit in debits}) == 4
    assert not any("record" in debit.release_id for debit in debits)


def test_disclosed_labels_are_told_as_they_are_and_debit_nothing():
    true = torch.tensor([2, 0, 1])
    told, debits = disclose_labels(
        true, records="abc", subjects=[""] * 3, classes=3, config=LabelConfig(), key=KEY
    )
    assert torch.equal(told, true)
    assert told is not true
    assert debits == []


def test_no_records_have_no_labels():
    for config in (LabelConfig(), _response(1.0)):
        told, debits = disclose_labels(
            torch.empty(0, dtype=torch.int64), records=[], subjects=[], classes=3, config=config, key=KEY
        )
        assert (told.shape, told.dtype, debits) == ((0,), torch.int64, [])


@pytest.mark.parametrize("config", [LabelConfig(), _response(1.0)])
@pytest.mark.parametrize("bad", [[0, 3], [-1, 0], [0, 1 << 40]])
def test_a_label_of_no_class_is_refused_and_not_shown(config, bad):
    with pytest.raises(InputError, match=r"labels must lie in \[0, 3\)") as caught:
        disclose_labels(
            torch.tensor(bad), records=["a", "b"], subjects=["", ""], classes=3, config=config, key=KEY
        )
    assert str(1 << 40) not in str(caught.value)


@pytest.mark.parametrize(("records", "subjects"), [(["a"], ["", ""]), (["a", "b"], [""]), ([], [])])
def test_ids_that_are_not_one_a_record_are_refused(records, subjects):
    with pytest.raises(InputError, match="2 labels"):
        disclose_labels(
            torch.tensor([0, 1]), records=records, subjects=subjects, classes=3, config=LabelConfig(), key=KEY
        )


# The cloud's loss


def _loss(logits: Tensor, labels: Tensor, *, classes: int, epsilon: float) -> Tensor:
    spec = dataset_spec(classes=classes, labels=_response(epsilon))
    return cloud_loss(spec, job_spec())(logits, labels)


def _channel(posterior: Tensor, epsilon: float) -> Tensor:
    """Of what is told, given the distribution of the true label: both `[k]`."""
    k = len(posterior)
    keep = math.exp(epsilon) / (math.exp(epsilon) + k - 1)
    return posterior * keep + (1 - posterior) * (1 - keep) / (k - 1)


def _expected(belief: Tensor, posterior: Tensor, epsilon: float) -> float:
    """The loss of one belief, averaged over the label and over the channel."""
    k = len(belief)
    losses = [
        _loss(belief.log()[None], torch.tensor([label]), classes=k, epsilon=epsilon) for label in range(k)
    ]
    return float((_channel(posterior, epsilon) * torch.stack(losses).double()).sum())


simplex = st.integers(2, 6).flatmap(
    lambda k: st.tuples(*[st.lists(st.floats(0.05, 1.0), min_size=k, max_size=k)] * 2)
)


@settings(max_examples=60, deadline=None)
@given(simplex, st.floats(0.3, 8.0))
def test_over_the_channel_the_true_posterior_has_the_least_loss(rows, epsilon):
    """Patrini et al. 2017, theorem 2: the noisy minimiser of the corrected loss is the clean one."""
    posterior, belief = (torch.tensor(row, dtype=torch.float64) / sum(row) for row in rows)
    best = _expected(posterior, posterior, epsilon)
    assert best <= _expected(belief, posterior, epsilon) + 1e-6
    entropy = -(_channel(posterior, epsilon) * _channel(posterior, epsilon).log()).sum()
    assert best == pytest.approx(float(entropy), abs=1e-5)
    logits = posterior.log().float()[None].requires_grad_()
    sum(
        weight * _loss(logits, torch.tensor([label]), classes=len(posterior), epsilon=epsilon)
        for label, weight in enumerate(_channel(posterior, epsilon).tolist())
    ).backward()
    assert float(logits.grad.abs().max()) < 1e-5


def test_uncorrected_cross_entropy_would_not_have_it_there():
    """The negative control: on labels as told its minimum is the channel's output, not the posterior."""
    posterior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    told = _channel(posterior, 1.0)
    plain = {
        name: float(-(told * belief.log()).sum())
        for name, belief in {"true": posterior, "told": told}.items()
    }
    assert plain["told"] < plain["true"] - 0.01
    assert _expected(posterior, posterior, 1.0) < _expected(told, posterior, 1.0) - 0.001


def test_with_a_growing_epsilon_it_becomes_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(40, 5, generator=generator), torch.arange(40) % 5
    plain = float(nn.functional.cross_entropy(logits, labels))
    gaps = [abs(float(_loss(logits, labels, classes=5, epsilon=e)) - plain) for e in (1.0, 4.0, 8.0, 16.0)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-5
    found = _loss(logits, labels, classes=5, epsilon=30.0)
    torch.testing.assert_close(found, nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("epsilon", [1e-6, 1.0, 16.0, 30.0])
def test_it_stays_finite_where_a_belief_is_sure_and_wrong(epsilon):
    logits = torch.tensor([[500.0, 0.0, 0.0], [0.0, 500.0, 0.0]], requires_grad=True)
    loss = _loss(logits, torch.tensor([1, 1]), classes=3, epsilon=epsilon)
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(logits.grad.isfinite().all())


def test_a_wrong_label_costs_at_most_what_the_mechanism_leaves_open():
    """−log P(told | any belief) ≤ log(e^ε + k − 1): a flipped label cannot drag the model far."""
    sure = torch.tensor([[1e4, 0.0, 0.0]])
    loss = float(_loss(sure, torch.tensor([2]), classes=3, epsilon=2.0))
    assert loss == pytest.approx(math.log(math.exp(2.0) + 2), rel=1e-5)


def test_disclosed_labels_have_smoothed_cross_entropy():
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3
    found = cloud_loss(dataset_spec(), job_spec(label_smoothing=0.2))(logits, labels)
    torch.testing.assert_close(
        found, nn.functional.cross_entropy(logits, labels, label_smoothing=0.2), rtol=0, atol=0
    )
