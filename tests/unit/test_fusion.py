import pytest
import torch

from delta.errors import CloudAnswerError
from delta.methods.delta.fusion import certified_fraction, check_answer, fuse
from delta.training.fusion import fit_alpha, mcnemar


def _logits(labels, classes, *, strength, noise, seed):
    generator = torch.Generator().manual_seed(seed)
    z = noise * torch.randn(len(labels), classes, generator=generator)
    z[torch.arange(len(labels)), labels] += strength
    return z


def _accuracy(z, labels):
    return float((z.argmax(1) == labels).double().mean())


LABELS = torch.arange(600) % 10


def test_a_useful_cloud_gets_weight_and_helps():
    main = _logits(LABELS, 10, strength=1.5, noise=1.0, seed=1)
    cloud = _logits(LABELS, 10, strength=2.0, noise=1.0, seed=2)
    alpha = fit_alpha(main, cloud, LABELS, alpha_max=4.0, bound=20.0)
    assert alpha == pytest.approx(2.0 / 1.5, rel=0.35)  # the optimum of two Gaussian scores
    assert _accuracy(fuse(main, cloud, alpha=alpha, bound=20.0), LABELS) > _accuracy(main, LABELS) + 0.05


def test_an_overconfident_useless_cloud_gets_none():
    main = _logits(LABELS, 10, strength=2.0, noise=1.0, seed=3)
    cloud = 15 * _logits(LABELS, 10, strength=0.0, noise=1.0, seed=4)
    assert fit_alpha(main, cloud, LABELS, alpha_max=4.0, bound=20.0) == 0.0


def test_random_clouds_are_never_worse_than_the_main_model_by_more_than_noise():
    """95 % of useless clouds get α = 0 exactly; the others cost at most a fraction of a point."""
    main = _logits(LABELS, 10, strength=2.0, noise=1.0, seed=5)
    test_main = _logits(LABELS, 10, strength=2.0, noise=1.0, seed=6)
    zeros, losses = 0, []
    for seed in range(60):
        alpha = fit_alpha(
            main, _logits(LABELS, 10, strength=0, noise=1, seed=100 + seed), LABELS, alpha_max=4, bound=20
        )
        zeros += alpha == 0.0
        test_cloud = _logits(LABELS, 10, strength=0, noise=1, seed=200 + seed)
        fused = fuse(test_main, test_cloud, alpha=alpha, bound=20.0)
        losses.append(_accuracy(test_main, LABELS) - _accuracy(fused, LABELS))
    assert zeros >= 52  # P(fewer | 95 % each) < 0.2 %
    assert max(losses) < 0.02


def test_a_cloud_that_lies_gets_no_negative_weight():
    main = _logits(LABELS, 10, strength=2.0, noise=1.0, seed=7)
    assert fit_alpha(main, -main, LABELS, alpha_max=4.0, bound=20.0) == 0.0


def test_alpha_stays_within_its_limit():
    main = 100 * _logits(LABELS, 10, strength=0.0, noise=1.0, seed=8)
    cloud = _logits(LABELS, 10, strength=3.0, noise=1.0, seed=9)
    assert fit_alpha(main, cloud, LABELS, alpha_max=4.0, bound=20.0) == 4.0


def test_separable_logits_do_not_diverge():
    main = _logits(LABELS, 10, strength=30.0, noise=0.1, seed=10)
    alpha = fit_alpha(main, main.clone(), LABELS, alpha_max=4.0, bound=20.0)
    assert 0.0 <= alpha <= 4.0


def test_fuse_clips_the_cloud():
    z = fuse(torch.zeros(1, 2), torch.tensor([[1e30, -1e30]]), alpha=0.5, bound=10.0)
    assert z.tolist() == [[5.0, -5.0]]


def test_no_cloud_flips_a_certified_record():
    generator = torch.Generator().manual_seed(0)
    main = 5 * torch.randn(200, 5, generator=generator)
    alpha, bound = 0.1, 10.0
    top = main.topk(2, dim=1).values
    certified = (top[:, 0] - top[:, 1]) > 2 * alpha * bound
    assert certified_fraction(main, alpha=alpha, bound=bound) == pytest.approx(
        float(certified.double().mean())
    )
    assert 0 < int(certified.sum()) < 200
    worst = torch.full_like(main, 1e9)
    worst[torch.arange(200), main.argmax(1)] = -1e9
    flipped = fuse(main, worst, alpha=alpha, bound=bound).argmax(1) != main.argmax(1)
    assert not bool((flipped & certified).any())
    assert bool(flipped.any())


@pytest.mark.parametrize(
    "bad",
    [
        None,
        torch.zeros(3, 4),
        torch.zeros(2, 5),
        torch.zeros(2, 4, dtype=torch.float64),
        torch.tensor([[0.0, float("nan"), 0, 0], [0, 0, 0, 0]]),
        torch.tensor([[0.0, float("inf"), 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_a_bad_answer_is_refused(bad):
    with pytest.raises(CloudAnswerError):
        check_answer(bad, records=2, classes=4)


def test_a_cloud_that_only_sharpens_what_was_right_gets_none():
    """More likelihood and the same answers: nobody would give bits away for that."""
    generator = torch.Generator().manual_seed(11)
    main = _logits(LABELS, 10, strength=2.0, noise=1.0, seed=12)
    right = main.argmax(1)
    cloud = torch.zeros(600, 10)
    cloud[torch.arange(600), right] = torch.where(right == LABELS, 1.0, 0.2) + 0.1 * torch.rand(
        600, generator=generator
    )
    assert fit_alpha(main, cloud, LABELS, alpha_max=4.0, bound=20.0) == 0.0


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(0, 0, 1.0), (5, 0, 1 / 32), (4, 1, 6 / 32), (1, 4, 31 / 32), (0, 5, 1.0)]
)
def test_the_test_of_a_gain_is_exact(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p, abs=1e-12)
    assert 0.4 < mcnemar(3000, 3000) < 0.6  # no overflow
