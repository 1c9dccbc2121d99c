"""The optimisation attack: a likelihood with the right slope; it draws a raw IR, and not bits that say little."""

import json

import pytest
import torch

from delta.attacks.metrics import ssim
from delta.attacks.optimisation import (
    Climb,
    IrExplanation,
    ReleaseExplanation,
    climbed,
    total_variation,
    tuned,
)
from delta.attacks.release_tap import ReleaseTap
from delta.attacks.settings import AttackSettings
from delta.attacks.suite import run_attacks
from delta.attacks.tap import RawIrTap
from delta.errors import ConfigError
from delta.methods.registry import method_class
from delta.release.noise import NoiseKey
from delta.training.api import lineage_of
from delta.training.assemble import assemble_bundle
from delta.training.cloud_stage import train_cloud_stage
from delta.training.config import FitConfig, TrainConfig
from delta.training.private_stage import train_private_stage
from tests.trained import settings, small_parts


@pytest.fixture(scope="module")
def few(trained):
    images = trained.data.test.images[:8]
    return images, trained.data.train.images.mean(0, keepdim=True).expand_as(images)


def test_the_likelihood_is_that_of_the_mechanism(trained):
    bundle, x = trained.bundles["noise"], trained.x[:3]
    tap, looks = ReleaseTap(bundle), 4
    seen = tap.capture(x, trained.test.ids[:3], looks=looks)
    chance = torch.special.ndtr(tap.messages(x) / tap.release.sigma).flatten(1)
    ones = looks * (seen.flatten(1).double() + 1) / 2
    expected = (ones * chance.log() + (looks - ones) * (1 - chance).log()).sum(1)
    found = ReleaseExplanation(bundle)(x, seen, looks=looks, progress=0.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["noise", "none", "svd"])
def test_its_slope_agrees_with_finite_differences(trained, name):
    bundle = trained.bundles[name]
    x = trained.x[:1].double().float()
    explain, tap = ReleaseExplanation(bundle), ReleaseTap(bundle)
    seen = tap.capture(trained.x[1:2], trained.test.ids[1:2])
    if name == "svd":  # the basis moves with the record, and no gradient flows through it
        leaf = x.clone().requires_grad_(True)
        explain(leaf, seen, looks=1, progress=0.5).sum().backward()
        assert float(leaf.grad.abs().max()) > 0
        return
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    leaf = x.clone().requires_grad_(True)
    explain(leaf, seen, looks=1, progress=1.0).sum().backward()
    step = 1e-3
    up, down = (explain(x + s * direction, seen, looks=1, progress=1.0) for s in (step, -step))
    slope = float((leaf.grad * direction).sum())
    # Without noise σ is a share of the message's own size, which is held fixed in the slope: nearly so here.
    assert float((up - down).sum()) / (2 * step) == pytest.approx(slope, rel=0.05, abs=0.5)


def test_total_variation_counts_differences_of_neighbours():
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 1, 1] = 2.0
    assert float(total_variation(image)) == 8.0


def test_a_raw_ir_is_drawn_and_bits_of_a_small_epsilon_are_not(trained, few):
    images, mean = few
    bundle = trained.bundles["noise"]
    preprocess, floor = bundle.manifest.input.preprocess, float(ssim(images, mean).mean())
    ir = RawIrTap(bundle).capture(preprocess(images), trained.test.ids[:8])
    drawn = climbed(
        IrExplanation(bundle), ir, mean, preprocess=preprocess, climb=Climb(steps=150, smooth=0.0, rate=0.2)
    )
    assert float(ssim(images, drawn).mean()) > floor + 0.3
    bits = ReleaseTap(bundle).capture(preprocess(images), trained.test.ids[:8])
    drawn = climbed(
        ReleaseExplanation(bundle), bits, mean, preprocess=preprocess, climb=Climb(steps=60, smooth=1.0)
    )
    assert float(ssim(images, drawn).mean()) < floor + 0.05


def test_noiseless_bits_of_all_channels_are_drawn_in_part(trained, few):
    images, mean = few
    config = TrainConfig.of(
        settings(message="all-channels", backbone="fixed", whole=None, main_fit=FitConfig(epochs=1))
    )
    stage = train_private_stage(small_parts(), trained.data.train, config)
    cloud = train_cloud_stage(stage, config, key=NoiseKey(bytes(32)))
    bundle = assemble_bundle(
        stage,
        cloud,
        config,
        class_names=trained.data.train.class_names,
        lineage=lineage_of(config, trained.data.train),
        figures={},
    )
    preprocess = bundle.manifest.input.preprocess
    tap = ReleaseTap(bundle)
    assert tap.shape[0] == 8
    seen = tap.capture(preprocess(images), trained.test.ids[:8])
    drawn = climbed(
        *(ReleaseExplanation(bundle), seen, mean),
        preprocess=preprocess,
        climb=Climb(steps=100, smooth=10.0, near=1000.0),
    )
    assert float(ssim(images, drawn).mean()) > float(ssim(images, mean).mean()) + 0.1
    # It explains the bits far better than where it began.
    agree = [float(((tap.messages(preprocess(x)) >= 0) == (seen > 0)).float().mean()) for x in (mean, drawn)]
    assert agree[0] < 0.9 < agree[1]


def test_the_prior_is_chosen_on_the_attackers_own_records(trained, few):
    images, mean = few
    bundle = trained.bundles["none"]
    preprocess = bundle.manifest.input.preprocess
    seen = ReleaseTap(bundle).capture(preprocess(images), trained.test.ids[:8])
    chosen = tuned(
        *(ReleaseExplanation(bundle), seen, images, mean, ssim), preprocess=preprocess, climb=Climb(steps=10)
    )
    plain = climbed(
        ReleaseExplanation(bundle), seen, mean, preprocess=preprocess, climb=Climb(steps=10, smooth=0.0)
    )
    best = climbed(ReleaseExplanation(bundle), seen, mean, preprocess=preprocess, climb=chosen)
    assert float(ssim(images, best).mean()) >= float(ssim(images, plain).mean())


def test_the_suite_searches_from_both_starts_and_names_the_strongest(trained):
    settings = AttackSettings(
        attacks=("decoder", "optimisation"), epochs=1, width=4, classifier_epochs=1, candidates=(100,), searched=4,
        steps=5, observations=(1,),
    )  # fmt: skip
    figures = json.loads(json.dumps(run_attacks(trained.bundles["noise"], trained.data, settings).to_json()))
    rows = [(row["tap"], row["attack"]) for row in figures["taps"]]
    starts = ("optimisation from the mean image", "optimisation from the drawing")
    taps = ("release", "raw-ir", "random-bits")
    assert rows == [(tap, attack) for tap in taps for attack in ("decoder", *starts)]
    search = figures["taps"][1]["search"]
    assert (search["victims"], search["steps"]) == (4, 5)
    best = {one["tap"]: one for one in figures["strongest"]}
    assert set(best) == set(taps)
    assert best["release"]["ssim"] == max(r["ssim"] for r in figures["taps"] if r["tap"] == "release")


def test_a_method_without_a_release_has_nothing_to_explain(trained):
    bundle = method_class("cloud-only").bundle_of(trained.whole)
    with pytest.raises(ConfigError, match="method 'delta'"):
        ReleaseExplanation(bundle)


def test_a_tap_that_it_cannot_explain_is_left_out_and_named(trained):
    settings = AttackSettings(
        attacks=("optimisation",),
        taps=("cloud-only",),
        classifier_epochs=1,
        candidates=(100,),
        searched=2,
        steps=1,
    )
    bundle = method_class("cloud-only").bundle_of(trained.whole)
    report = run_attacks(bundle, trained.data, settings)
    assert report.taps == ()
    assert "cloud-only: the optimisation attack was left out" in " ".join(report.notes)
