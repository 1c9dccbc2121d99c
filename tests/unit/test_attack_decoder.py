"""The U-Net: it starts as the mean image, draws what is there to draw, and nothing where there is nothing."""

import pytest
import torch

from delta.attacks.decoding import DecoderSettings, Pairs, draw, fit_decoder
from delta.attacks.method_tap import MethodTap
from delta.attacks.metrics import psnr, ssim
from delta.attacks.release_tap import ReleaseTap
from delta.attacks.tap import RandomBitsTap, RawIrTap, generator_on
from delta.errors import ConfigError, InputError
from delta.methods.registry import method_class
from delta.models.unet import UNet

QUICK = DecoderSettings(epochs=4, width=8, batch=32)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def floor(trained):
    """SSIM and PSNR of the mean image, which needs no release."""
    images = trained.data.test.images
    mean = trained.data.train.images.mean(0, keepdim=True).expand_as(images)
    return float(ssim(images, mean).mean()), float(psnr(images, mean).mean())


def _attacked(trained, tap, settings=QUICK, **looks):
    """SSIM and PSNR of drawings from what the tap captures of the test records."""
    found = fit_decoder(tap, trained.data.train.images, trained.private.input, settings=settings, **looks)
    seen = tap.capture(trained.x, trained.test.ids, **looks)
    drawn, images = draw(found.model, seen), trained.data.test.images
    assert found.epochs == settings.epochs
    assert found.parameters == sum(p.numel() for p in found.model.parameters())
    return float(ssim(images, drawn).mean()), float(psnr(images, drawn).mean())


@pytest.mark.parametrize(
    ("observation", "image"),
    [
        ((1, 32, 32), (1, 32, 32)),
        ((64, 8, 8), (3, 32, 32)),
        ((8, 14, 14), (3, 28, 28)),
        ((2, 64, 64), (1, 32, 32)),
        ((3, 33, 33), (1, 32, 32)),
        ((5, 7, 9), (3, 30, 50)),
        ((10, 1, 1), (1, 16, 16)),
    ],
)
def test_it_takes_observations_of_any_size_and_starts_as_the_mean(observation, image):
    mean = torch.rand(image, generator=torch.Generator().manual_seed(0))
    model = UNet(observation, mean=mean, width=4).eval()
    with torch.no_grad():
        drawn = model(torch.randn(2, *observation))
    torch.testing.assert_close(drawn, mean.clamp(0.004, 0.996).expand(2, *image))


def test_images_and_widths_out_of_range_are_refused():
    with pytest.raises(InputError, match="4×4 at least"):
        UNet((1, 3, 3), mean=torch.zeros(1, 3, 3))
    with pytest.raises(InputError, match="width of 4"):
        UNet((1, 8, 8), mean=torch.zeros(1, 8, 8), width=2)


def test_one_record_is_not_enough(trained):
    tap = RandomBitsTap((1, 16, 16))
    with pytest.raises(ConfigError, match="2 records"):
        fit_decoder(tap, trained.data.train.images[:1], trained.private.input, settings=QUICK)


def test_the_raw_ir_is_drawn_well_and_noiseless_bits_less_so(trained, floor):
    raw, _ = _attacked(trained, RawIrTap(trained.bundles["none"]))
    bits, _ = _attacked(trained, ReleaseTap(trained.bundles["none"]))
    assert raw > 0.9
    assert floor[0] + 0.15 < bits < raw


def test_random_bits_do_not_beat_the_mean_image(trained, floor):
    found, error = _attacked(trained, RandomBitsTap((1, 16, 16)))
    assert error < floor[1] + 0.05
    assert found < floor[0] + 0.08  # a constant picture that is fitted to SSIM scores a little above the mean


def test_honest_noise_leaves_the_decoder_at_the_floor(trained, floor):
    found, error = _attacked(trained, ReleaseTap(trained.bundles["noise"]))
    assert found < floor[0] + 0.08
    assert error < floor[1] + 0.05


@pytest.mark.slow
def test_blinded_records_draw_nothing_and_records_with_hardly_any_noise_all(trained, floor):
    def of(method, **settings):
        return _attacked(trained, MethodTap(method_class(method).bundle_of(trained.whole, **settings)))

    blinded, error = of("slalom")
    assert blinded < floor[0] + 0.08
    assert error < floor[1] + 0.05
    assert of("dp-input", epsilon=1e6)[0] > 0.9


def test_the_seed_fixes_the_decoder_and_leaves_other_random_numbers_alone(trained):
    tap, input = RandomBitsTap((1, 16, 16)), trained.private.input
    images, short = trained.data.train.images[:64], DecoderSettings(epochs=1, width=4, batch=32, flips=True)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = fit_decoder(tap, images, input, settings=short)
    assert torch.equal(torch.rand(1), expected)
    again = fit_decoder(tap, images, input, settings=short)
    assert first.loss == again.loss
    for one, other in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_mirrored_pairs_belong_together_where_they_are_observed_once(trained):
    tap = MethodTap(method_class("cloud-only").bundle_of(trained.whole))
    images, input = trained.data.train.images[:6], trained.private.input
    pairs = Pairs(tap, images, input, looks=1, flips=True, noise=generator_on(CPU, 0))
    index, mirror = torch.tensor([4, 0, 5]), torch.tensor([True, False, True])
    seen, target = pairs.observe(index, mirror), pairs.target(index, mirror)
    assert torch.equal(seen, input.preprocess(target))
    assert torch.equal(target[0], images[4].flip(2))
    assert torch.equal(target[1], images[0])
