"""The conditional GAN: it starts as the mean image, learns to draw a raw IR, and its losses are those it says."""

import json
import math
from dataclasses import replace

import pytest
import torch

from delta.attacks.cgan import L1, Critic, Generator, draw_samples, fit_cgan
from delta.attacks.decoding import DecoderSettings
from delta.attacks.metrics import ssim
from delta.attacks.report import TapRow, strongest_of
from delta.attacks.settings import AttackSettings
from delta.attacks.suite import run_attacks
from delta.attacks.tap import RandomBitsTap, RawIrTap
from delta.errors import ConfigError

QUICK = DecoderSettings(epochs=6, width=8, batch=32)


def _attacked(trained, tap, *, l1, settings=QUICK):
    fitted = fit_cgan(tap, trained.data.train.images, trained.private.input, l1=l1, settings=settings)
    drawn = draw_samples(fitted.model, tap.capture(trained.x, trained.test.ids), seed=0)
    return fitted, float(ssim(trained.data.test.images, drawn).mean())


@pytest.fixture(scope="module")
def floor(trained):
    images = trained.data.test.images
    mean = trained.data.train.images.mean(0, keepdim=True).expand_as(images)
    return float(ssim(images, mean).mean())


@pytest.mark.parametrize(
    ("observation", "image"),
    [
        ((1, 32, 32), (1, 32, 32)),
        ((64, 8, 8), (3, 32, 32)),
        ((2, 64, 64), (1, 32, 32)),
        ((10, 1, 1), (1, 16, 16)),
    ],
)
def test_it_takes_observations_of_any_size_and_starts_as_the_mean(observation, image):
    mean = torch.rand(image, generator=torch.Generator().manual_seed(0))
    centre, scale = torch.zeros(observation[0]), torch.ones(observation[0])
    seen = torch.randn(2, *observation)
    model = Generator(observation, mean=mean, centre=centre, scale=scale, width=4).eval()
    with torch.no_grad():
        drawn = model(seen, torch.randn(2, 1, *observation[1:]))
    torch.testing.assert_close(drawn, mean.clamp(0.004, 0.996).expand(2, *image))
    critic = Critic(observation, image, centre=centre, scale=scale, width=4)
    scores = critic(drawn, seen)
    assert scores.shape[:2] == (2, 1)
    assert max(scores.shape[2:]) <= 4


def test_the_critic_reads_the_observation_and_its_slope_is_bounded():
    torch.manual_seed(0)
    critic = Critic((1, 16, 16), (1, 16, 16), centre=torch.zeros(1), scale=torch.ones(1), width=8)
    image, seen = torch.rand(1, 1, 16, 16), torch.randn(1, 1, 16, 16)
    for _ in range(20):
        critic(image, seen)  # each pass in training is a step of the power iteration
    critic.eval()
    assert not torch.equal(critic(image, seen), critic(image, -seen))
    for name, module in critic.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            largest = torch.linalg.matrix_norm(module.weight.detach().flatten(1), ord=2)
            assert float(largest) == pytest.approx(1, abs=0.15), name


@pytest.mark.parametrize("l1", [0.0, pytest.param(L1, marks=pytest.mark.slow)])
def test_it_draws_a_raw_ir_far_better_than_its_start(trained, floor, l1):
    fitted, found = _attacked(trained, RawIrTap(trained.bundles["none"]), l1=l1)
    assert found > floor + 0.2
    assert math.isfinite(fitted.loss)
    assert 0 <= fitted.critic_loss < 2
    assert fitted.to_json()["l1"] == l1
    assert (fitted.epochs, fitted.records) == (6, 600)


def test_random_bits_give_the_adversarial_loss_nothing(trained, floor):
    _, found = _attacked(trained, RandomBitsTap((1, 16, 16)), l1=0.0, settings=replace(QUICK, epochs=3))
    assert found < floor + 0.05


def test_the_seed_fixes_it_and_leaves_other_random_numbers_alone(trained):
    tap, input = RandomBitsTap((1, 16, 16)), trained.private.input
    images, short = trained.data.train.images[:64], DecoderSettings(epochs=1, width=4, batch=32, flips=True)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = fit_cgan(tap, images, input, l1=L1, settings=short)
    assert torch.equal(torch.rand(1), expected)
    again = fit_cgan(tap, images, input, l1=L1, settings=short)
    assert (first.loss, first.critic_loss) == (again.loss, again.critic_loss)
    seen = tap.capture(trained.x, trained.test.ids)
    drawn = draw_samples(first.model, seen, seed=1)
    assert torch.equal(drawn, draw_samples(again.model, seen, seed=1))
    assert not torch.equal(drawn, draw_samples(again.model, seen, seed=2))


def test_one_record_is_not_enough(trained):
    with pytest.raises(ConfigError, match="2 records"):
        fit_cgan(
            *(RandomBitsTap((1, 16, 16)), trained.data.train.images[:1], trained.private.input),
            l1=0.0,
            settings=QUICK,
        )


def test_the_suite_runs_both_losses_beside_the_decoder(trained):
    settings = AttackSettings(
        attacks=("decoder", "cgan", "optimisation"), taps=("release", "random-bits"), epochs=1, width=4,
        classifier_epochs=1, candidates=(100,), searched=4, steps=2, observations=(1,), examples=1,
    )  # fmt: skip
    report = run_attacks(trained.bundles["none"], trained.data, settings)
    figures = json.loads(json.dumps(report.to_json()))
    gans = ["cgan, adversarial alone", "cgan with an L1 term"]
    release = [row for row in figures["taps"] if row["tap"] == "release"]
    assert [row["attack"] for row in release][:3] == ["decoder", *gans]
    assert [row["cgan"]["l1"] for row in release[1:3]] == [0.0, L1]
    assert release[1]["cgan"]["critic_loss"] > 0
    assert set(release[3]["same_records"]) == {"decoder", *gans}
    nothing = [row["ssim"] for row in figures["taps"] if row["tap"] == "random-bits" and "search" not in row]
    assert figures["floors"]["random_bits"]["ssim"] == max(nothing)
    assert {one["tap"] for one in figures["strongest"]} == {"release", "random-bits"}
    assert f"({figures['strongest'][0]['attack']})" in figures["verdict"]
    assert len(report.examples) == 1


def _row(attack, ssim, *, looks=1, **same):
    effort = {"victims": 4, "steps": 1} if same else {}
    return TapRow("release", looks, {"ssim": ssim}, effort, attack, same)


def test_a_search_of_easier_records_is_not_the_strongest():
    decoder = _row("decoder", 0.60)
    lucky = _row("optimisation from the drawing", 0.65, decoder=0.66)
    better = _row("optimisation from the drawing", 0.65, decoder=0.64)
    assert strongest_of([decoder, lucky]) is decoder
    assert strongest_of([decoder, better]) is better
    assert strongest_of([_row("optimisation from the mean image", 0.3)]).ssim == 0.3
    # Compared with the attacks of as many looks: the decoder of one look may draw less than the search of five.
    five = _row("optimisation from the drawing", 0.7, looks=5, decoder=0.72)
    assert strongest_of([decoder, five, _row("decoder", 0.71, looks=5)]).attack == "decoder"
    assert strongest_of([]) is None
