import math

import pytest
import torch

from delta.attacks.membership.curves import area, caught_at, curve_of, roc
from delta.errors import InputError


def _normal(n, *, shift=0.0, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_the_area_counts_every_pair_and_half_of_the_ties():
    positives = torch.tensor([0.0, 1.0, 1.0, 2.0, 5.0])
    negatives = torch.tensor([1.0, 0.0, 2.0, -1.0])
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives]
    assert area(positives, negatives)[0] == pytest.approx(sum(pairs) / len(pairs))


def test_the_area_lies_under_the_curve():
    positives, negatives = _normal(80, shift=1).round(decimals=1), _normal(60, seed=1).round(decimals=1)
    fpr, tpr = roc(positives, negatives)
    assert (float(fpr[0]), float(tpr[0]), float(fpr[-1]), float(tpr[-1])) == (0, 0, 1, 1)
    assert bool((fpr.diff() >= 0).all())
    assert float(torch.trapezoid(tpr, fpr)) == pytest.approx(area(positives, negatives)[0])


def test_delongs_variance_is_that_of_its_definition():
    positives, negatives = _normal(50, shift=0.5), _normal(70, seed=1)
    kernel = (positives[:, None] > negatives).double()
    variance = float(kernel.mean(1).var()) / 50 + float(kernel.mean(0).var()) / 70
    auc, (low, high) = area(positives, negatives)
    assert auc - low == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-5)
    assert high - auc == pytest.approx(auc - low)


def test_the_interval_covers_the_truth_as_often_as_stated():
    truth = 0.5 * (1 + math.erf(1 / 2))  # of two normals a distance 1 apart: Φ(1/√2)
    covered = 0
    for seed in range(300):
        low, high = area(_normal(60, shift=1, seed=2 * seed), _normal(60, seed=2 * seed + 1))[1]
        covered += low <= truth <= high
    assert 0.90 < covered / 300 < 0.99  # 0.95 expected, standard deviation 0.013


@pytest.mark.parametrize(("above", "expected"), [(True, 1.0), (False, 0.0)])
def test_a_perfect_score_still_has_an_interval(above, expected):
    one, other = torch.arange(20.0) + 100, torch.arange(30.0)
    auc, (low, high) = area(*((one, other) if above else (other, one)))
    assert auc == expected
    assert high - low == pytest.approx(1 - 0.025 ** (1 / 20))


def test_what_is_caught_is_counted_at_the_allowed_false_alarms():
    negatives = torch.arange(300.0)
    positives = torch.tensor([296.0, 296.5, 298.0, 299.5, 10.0])
    found = caught_at(positives, negatives, fpr=0.01)
    # Three of 300 may pass: those above 296.
    assert (found.false_positives, found.tpr, found.resolved) == (3, 0.6, True)
    strict = caught_at(positives, negatives, fpr=0.001)
    assert (strict.false_positives, strict.tpr, strict.resolved, strict.needed) == (0, 0.2, False, 1000)
    assert strict.interval[0] < 0.2 < strict.interval[1]


def test_ties_never_let_more_false_alarms_through():
    negatives = torch.cat([torch.zeros(50), torch.ones(50)])
    found = caught_at(torch.ones(10), negatives, fpr=0.1)
    assert (found.false_positives, found.tpr) == (0, 0.0)


def test_guessing_is_not_better_than_guessing():
    curve = curve_of(_normal(200), _normal(200, seed=1))
    assert curve.interval[0] < 0.5 < curve.interval[1]
    assert not curve.better_than_guessing
    figures = curve.to_json()
    assert set(figures["tpr_at_fpr"]) == {"0.001", "0.01"}
    assert figures["tpr_at_fpr"]["0.001"]["non_members_needed"] == 1000


@pytest.mark.parametrize("scores", [torch.tensor([1.0]), torch.tensor([1.0, math.nan])])
def test_scores_that_make_no_curve_are_refused(scores):
    with pytest.raises(InputError, match="two scores of either kind"):
        area(scores, torch.zeros(3))
