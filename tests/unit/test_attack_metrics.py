import pytest
import torch

from delta.attacks.intervals import clopper_pearson
from delta.attacks.metrics import psnr, smooth_ssim, ssim
from delta.errors import InputError


@pytest.mark.parametrize("shape", [(7, 3, 32, 32), (4, 1, 28, 28), (3, 2, 16, 21), (2, 1, 6, 7)])
def test_the_fast_ssim_is_torchmetrics_number(shape):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(shape, generator=generator)
    drawn = (images + 0.3 * torch.randn(shape, generator=generator)).clamp(0, 1)
    torch.testing.assert_close(smooth_ssim(images, drawn), ssim(images, drawn), rtol=1e-4, atol=1e-5)


def test_the_fast_ssim_has_a_gradient_that_raises_it():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 1, 16, 16, generator=generator)
    drawn = torch.rand(2, 1, 16, 16, generator=generator).requires_grad_()
    before = smooth_ssim(images, drawn).mean()
    before.backward()
    assert drawn.grad is not None
    after = smooth_ssim(images, (drawn + 1.0 * drawn.grad).detach()).mean()
    assert float(after.detach()) > float(before.detach())
    assert torch.equal(smooth_ssim(images, images), torch.ones(2))


def test_too_small_an_image_is_refused():
    with pytest.raises(InputError, match="6×6"):
        smooth_ssim(torch.zeros(1, 1, 5, 9), torch.zeros(1, 1, 5, 9))


def test_psnr_of_a_known_error():
    images = torch.zeros(1, 1, 8, 8)
    assert float(psnr(images, images + 0.1)) == pytest.approx(20.0, abs=1e-4)


def test_intervals_have_their_closed_forms_at_the_ends():
    assert clopper_pearson(0, 20) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert clopper_pearson(20, 20) == (pytest.approx(0.025 ** (1 / 20)), 1.0)
    low, high = clopper_pearson(50, 1000)
    assert (low, high) == (pytest.approx(0.0373354, abs=1e-6), pytest.approx(0.0653905, abs=1e-6))


def test_a_part_of_a_hit_widens_the_interval_to_both_sides():
    low, high = clopper_pearson(3.5, 10)
    assert low == clopper_pearson(3, 10)[0]
    assert high == clopper_pearson(4, 10)[1]


@pytest.mark.parametrize(("hits", "of"), [(-1, 10), (11, 10), (0, 0)])
def test_impossible_rates_are_refused(hits, of):
    with pytest.raises(InputError, match="successes"):
        clopper_pearson(hits, of)
