import pytest
import torch

from delta.attacks.membership.curves import curve_of
from delta.attacks.membership.lira import OWN_VARIANCE_FROM, lira_scores, shadow_masks
from delta.attacks.membership.scores import logit_confidence
from delta.attacks.membership.threshold import label_only_scores, loss_scores, views_of
from delta.errors import InputError


def test_confidence_is_the_logit_of_the_probability():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(logit_confidence(logits, labels), (p / (1 - p)).log())


def test_confidence_stays_finite_where_the_probability_rounds_to_one():
    found = logit_confidence(torch.tensor([[900.0, 0.0, 0.0], [-900.0, 0.0, 0.0]]), torch.tensor([0, 0]))
    assert found[0] == pytest.approx(900 - 0.693147, abs=1e-4)
    assert found[1] == pytest.approx(-900 - 0.693147, abs=1e-4)


def test_masks_give_every_record_as_many_models_that_know_it():
    masks = shadow_masks(500, shadows=7, seed=3)
    assert masks.shape == (8, 500)
    assert masks[:-1].sum(0).unique().tolist() == [3]
    assert 200 < int(masks[-1].sum()) < 300  # 250 expected, standard deviation 11
    # The target's choice tells nothing of the shadows': each agrees with it about half of the time.
    assert all(200 < int((mask == masks[-1]).sum()) < 300 for mask in masks[:-1])
    assert not torch.equal(masks, shadow_masks(500, shadows=7, seed=4))


def _world(*, shadows, records=400, gap=1.0, seed=0):
    """Confidences of models over records of very different difficulty; knowing one adds `gap`."""
    masks = shadow_masks(records, shadows=shadows, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    hard = 5 * torch.randn(records, generator=generator, dtype=torch.float64)
    noise = 0.5 * torch.randn(masks.shape, generator=generator, dtype=torch.float64)
    return hard + gap * masks + noise, masks


@pytest.mark.parametrize("shadows", [16, OWN_VARIANCE_FROM])
def test_lira_sees_through_difficulty_that_hides_members_from_a_threshold(shadows):
    phi, masks = _world(shadows=shadows)
    known = masks[-1]
    lira = lira_scores(phi[-1], phi[:-1], masks[:-1])
    threshold = loss_scores(torch.nn.functional.softplus(-phi[-1]))
    best, plain = curve_of(lira[known], lira[~known]), curve_of(threshold[known], threshold[~known])
    assert best.interval[0] > 0.85  # two normals 2 standard deviations apart: 0.92
    assert plain.interval[1] < 0.65
    assert best.caught[1].interval[0] > plain.caught[1].interval[1]


def test_lira_finds_nothing_where_knowing_changes_nothing():
    phi, masks = _world(shadows=16, gap=0.0)
    score = lira_scores(phi[-1], phi[:-1], masks[:-1])
    low, high = curve_of(score[masks[-1]], score[~masks[-1]]).interval
    assert low < 0.5 < high


def test_lira_equals_two_gaussians():
    known = torch.tensor([[True], [True], [False], [False]])
    phi = torch.tensor([[3.0], [5.0], [0.0], [1.0]], dtype=torch.float64)
    normal = torch.distributions.Normal
    expected = normal(4.0, 2**0.5).log_prob(torch.tensor(2.0)) - normal(0.5, 0.5**0.5).log_prob(
        torch.tensor(2.0)
    )
    found = lira_scores(torch.tensor([2.0]), phi, known)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_lira_needs_two_models_of_either_kind():
    with pytest.raises(InputError, match="two models that know"):
        lira_scores(torch.zeros(2), torch.zeros(4, 2), torch.ones(4, 2, dtype=torch.bool))
    with pytest.raises(InputError, match="4 shadow models"):
        shadow_masks(100, shadows=3, seed=0)


def test_views_are_shifts_and_the_mirror_image():
    image = torch.arange(25.0).view(1, 1, 5, 5)
    views = views_of(image, reach=1)
    assert len(views) == 6
    torch.testing.assert_close(views[0], image)
    torch.testing.assert_close(views[-1], image.flip(3))
    up = views[1]
    torch.testing.assert_close(up[:, :, 1:], image[:, :, :-1])
    torch.testing.assert_close(up[:, :, 0], image[:, :, 0])  # the edge's own colour
    assert len(views_of(image, reach=2, mirror=False)) == 13
    with pytest.raises(InputError, match="larger images"):
        views_of(image, reach=5)


def test_a_wrong_answer_to_the_image_outweighs_its_views():
    kept = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # [views, records]
    assert label_only_scores(kept).tolist() == [3.0, 2.0]
