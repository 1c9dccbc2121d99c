"""Training as a whole: what a bundle of it holds, what it rests on, and which faults show before the first step."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from delta.bundle.store import load_bundle, save_bundle
from delta.data.records import Dataset, DataSplits
from delta.errors import ConfigError, ModelError
from delta.methods.delta.private import DeltaMethod
from delta.release.noise import NoiseKey
from delta.training.api import train
from delta.training.checkpoint import FitStore
from delta.training.cloud_stage import Stage2, train_cloud_stage
from delta.training.config import FitConfig, MainConfig, NoiseConfig, TrainConfig
from delta.training.controls import Controls, measure_controls
from delta.training.private_stage import Labelled, train_private_stage
from delta.training.release_stage import build_release
from delta.transport.inprocess import InProcessTransport
from tests.trained import reduced, settings, small_parts

QUICK = {
    "whole": FitConfig(epochs=1, batch=32),
    "main_fit": FitConfig(epochs=1, batch=32),
    "cloud_fit": FitConfig(epochs=1, batch=32),
    "held_out": 0.2,
}


class _Steps:
    """A progress callback that counts the steps of each stage."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.done[stage] = self.done.get(stage, 0) + 1


@pytest.fixture(scope="module")
def few(digits: DataSplits) -> DataSplits:
    """100 records to train on and 40 to test on."""
    return digits.limited(100, test_limit=40)


def test_train_makes_a_bundle_that_can_be_saved_loaded_and_run(few, tmp_path):
    random_state = torch.get_rng_state()
    steps = _Steps()
    bundle = train(small_parts(), few, progress=steps, **settings(**QUICK, noise={"epsilon": 8}))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert set(steps.done) == {"whole model", "main model", "cloud model", "noiseless control"}
    figures = bundle.facts.figures
    assert set(figures) == set(Controls.__dataclass_fields__)
    assert all(0 <= value <= 100 for value in figures.values())
    assert bundle.manifest.lineage["noise"] == "epsilon=8"
    assert bundle.manifest.release is not None
    assert bundle.manifest.release.sigma == pytest.approx(1.2, abs=0.005)
    loaded = load_bundle(save_bundle(bundle, tmp_path / "bundle"))
    assert loaded.manifest == bundle.manifest
    assert loaded.facts == bundle.facts
    answers = []
    for whole in (bundle, loaded):
        half = DeltaMethod.cloud_half(whole.cloud_part, device=torch.device("cpu"))
        with InProcessTransport(half) as transport:
            method = DeltaMethod(whole, key=NoiseKey(bytes(32)))
            method.prepare(transport)
            x = bundle.manifest.input.preprocess(few.test.images[:4])
            answers.append(method.infer(x).logits)
    assert torch.equal(*answers)


def test_what_the_cloud_reads_tells_nothing_private(trained):
    for bundle in trained.bundles.values():
        text = bundle.manifest.model_dump_json()
        assert json.loads(text)
        for word in ('alpha"', "figures", "main_alone", *trained.private.fit.ids[:5]):
            assert word not in text
        assert not any(name.startswith(("main.", "backbone.")) for name in bundle.cloud)


def test_the_same_seed_gives_the_same_release_and_weights(few):
    def run(**changes: Any) -> tuple[str, str]:
        bundle = train(small_parts(), few, **settings(**{**QUICK, **changes}))
        return bundle.manifest.release_hash, bundle.facts.weights_hash

    first, again, other = run(), run(), run(seed=1)
    assert first == again
    assert first[0] != other[0]


def test_the_release_hash_covers_the_release_and_nothing_else(trained):
    base = TrainConfig.of(settings())

    def hashed(**changes: Any) -> str:
        return build_release(trained.private, base.model_copy(update=changes))[0].release_hash

    same = hashed()
    for changes in ({"alpha_max": 1.0}, {"logit_bound": 1.0}, {"fusion": "sum"}, {"name": "x"}, {"seed": 7}):
        assert hashed(**changes) == same
    others = [
        hashed(offload="principal"),
        hashed(noise=NoiseConfig(epsilon=8.0)),
        hashed(noise=NoiseConfig(epsilon=4.0)),
        hashed(message="all-channels"),
        hashed(message="projection", channels=2),
    ]
    assert len({same, *others}) == 6


def test_every_part_of_a_release_has_its_provenance(trained, few):
    trained_on_data = trained.stages["none"].release
    assert {name: p.kind for name, p in trained_on_data.provenances.items()} == {
        "backbone": "private",
        "basis": "data-independent",  # given the backbone: on synthetic images
        "message map": "data-independent",
        "clip norm": "data-independent",
    }
    fixed = trained.stages["svd"].release
    assert {p.kind for p in fixed.provenances.values()} == {"data-independent"}
    approximate = TrainConfig.of(settings(**{**QUICK, "whole": None}, basis="svd", algorithm="approximate"))
    release, _ = build_release(train_private_stage(small_parts(), few.train, approximate), approximate)
    assert release.basis.algorithm == "approximate"
    assert "seeded" in release.basis.component.provenance.note
    assert all(p.note for p in release.provenances.values())


def test_a_release_configuration_does_not_move_with_the_owners_model(few):
    """The owner may go on training the model, or train it again: the frozen backbone is a copy."""
    parts = small_parts()
    config = TrainConfig.of(settings(**QUICK))
    stage = train_private_stage(parts, few.train, config)
    before = build_release(stage, config)[0].release_hash
    with torch.no_grad():
        for parameter in parts.model.parameters():
            parameter.add_(1.0)
    assert build_release(stage, config)[0].release_hash == before
    assert all(parameter.requires_grad for parameter in parts.model.parameters())


def test_a_model_that_comes_trained_is_left_as_it_is(few):
    parts = small_parts()
    before = copy.deepcopy(parts.model.state_dict())
    steps = _Steps()
    train_private_stage(
        parts, few.train, TrainConfig.of(settings(**{**QUICK, "whole": None})), progress=steps
    )
    assert set(steps.done) == {"main model"}
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), parts.model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("augment", ["shift", "shift+flip"])
def test_augmented_views_reach_the_private_models(few, augment):
    plain = TrainConfig.of(settings(**QUICK))
    config = TrainConfig.of(settings(**QUICK, augment=augment))
    stages = [train_private_stage(small_parts(), few.train, c) for c in (plain, config)]
    weights = [torch.cat([p.flatten() for p in stage.main.parameters()]) for stage in stages]
    assert not torch.equal(*weights)


def test_finished_fits_are_taken_and_damaged_ones_trained_anew_to_the_same_weights(few, tmp_path):
    config = TrainConfig.of(settings(**QUICK))
    warnings: list[str] = []

    def run() -> tuple[dict[str, int], str]:
        steps = _Steps()
        store = FitStore(tmp_path, {"data": "few"}, warn=warnings.append)
        stage = train_private_stage(small_parts(), few.train, config, progress=steps, store=store)
        train_cloud_stage(stage, config, where=Stage2(store=store), key=NoiseKey(bytes(32)), progress=steps)
        return steps.done, build_release(stage, config)[0].release_hash

    fresh, reference = run()
    assert set(fresh) == {"whole model", "main model", "cloud model"}
    assert run() == ({}, reference)
    assert warnings == []
    for path in tmp_path.glob("*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])
    assert run() == (fresh, reference)
    assert len(warnings) == 3
    assert all("starting anew" in warning for warning in warnings)
    assert run() == ({}, reference)


# Controls


def test_the_controls_stand_where_they_should(trained):
    stage, config = trained.stages["none"], TrainConfig.of(settings())
    key = NoiseKey(bytes(32))
    controls = measure_controls(trained.private, stage, trained.test, config, key=key).controls
    assert controls.noiseless_bits == controls.delta  # the mechanism itself has no noise
    assert controls.private_only > 30  # ten classes
    assert controls.main_alone > 30
    # α is refitted on random bits: it is 0, or so small that no more than a few answers change
    assert abs(controls.random_bits - controls.main_alone) <= 6
    assert 0 <= controls.cloud_alone <= 100


def test_the_noiseless_control_of_a_noisy_release_is_trained_or_taken(trained):
    noisy, clean = trained.stages["noise"], trained.stages["none"]
    config = TrainConfig.of(settings()).model_copy(
        update={"noise": NoiseConfig(epsilon=8.0), "cloud_fit": FitConfig(epochs=1, batch=64)}
    )
    key, steps = NoiseKey(bytes(32)), _Steps()
    taken = measure_controls(
        trained.private, noisy, trained.test, config, key=key, noiseless=clean, progress=steps
    ).controls
    assert steps.done == {}
    trained_now = measure_controls(
        trained.private, noisy, trained.test, config, key=key, progress=steps
    ).controls
    assert set(steps.done) == {"noiseless control"}
    assert taken.delta == trained_now.delta
    assert abs(taken.random_bits - taken.main_alone) <= 6


# Faults that show before the first step


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"rank": 99}, ConfigError, "rank 99"),
        ({"block": 5}, ConfigError, "5"),
        ({"block": 8, "keep": 9}, ConfigError, "9"),
        ({"message": "projection", "channels": 99}, ConfigError, "99"),
        ({"main": MainConfig(max_macs=10)}, ModelError, "max_macs"),
        ({"device": "cuda:97"}, ConfigError, "cuda:97"),
    ],
)
def test_a_setting_that_does_not_fit_the_model_costs_no_step(few, changes, error, words):
    steps = _Steps()
    with pytest.raises(error, match=words) as caught:
        train(small_parts(), few, progress=steps, **settings(**{**QUICK, **changes}))
    assert "\n" not in str(caught.value)
    assert steps.done == {}


def test_data_that_does_not_fit_the_model_costs_no_step(few):
    steps = _Steps()
    larger = few.train.subset(range(100))
    wide = Dataset.of(
        name="wide",
        pixels=torch.zeros(100, 1, 16, 32),
        labels=larger.labels,
        class_names=larger.class_names,
    )
    with pytest.raises(ConfigError, match=r"\(1, 16, 16\).*\(1, 16, 32\)"):
        train(small_parts(), DataSplits(wide, wide), progress=steps, **settings(**QUICK))
    three = Dataset.of(
        name="three",
        pixels=torch.rand(90, 1, 16, 16),
        labels=torch.arange(90) % 3,
        class_names=["a", "b", "c"],
    )
    with pytest.raises(ConfigError, match=r"10 classes.*'three' has 3"):
        train(small_parts(), DataSplits(three, three), progress=steps, **settings(**QUICK))
    assert steps.done == {}


def test_a_model_that_the_cloud_cannot_build_costs_no_step(few):
    from dataclasses import replace

    steps = _Steps()
    with pytest.raises(ConfigError, match="target="):
        train(replace(small_parts(), architecture=None), few, progress=steps, **settings(**QUICK))
    assert steps.done == {}


def test_training_releases_each_record_once(trained):
    stage = trained.stages["noise"]
    assert stage.releases == len(trained.private.fit.y) + len(trained.private.held_out.y)
    assert not set(trained.private.fit.ids) & set(trained.private.held_out.ids)
    assert isinstance(trained.private.fit, Labelled)


def test_half_size_digits_are_still_digits(digits):
    assert digits.image_shape == (1, 16, 16)
    assert reduced(digits.test, 20).class_names == digits.class_names
