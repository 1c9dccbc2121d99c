"""Membership inference on real, tiny models: it finds what is there, and nothing where nothing is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from delta.attacks.membership.curves import curve_of
from delta.attacks.membership.lira import lira_scores, shadow_masks
from delta.attacks.membership.recipe import Recipe, recipe_of
from delta.attacks.membership.report import MembershipSettings
from delta.attacks.membership.run import run_membership
from delta.attacks.membership.scores import asks_main, asks_releases, asks_stored, signals_of
from delta.attacks.membership.shadows import train_cloud_shadows, train_main_shadows
from delta.attacks.membership.threshold import loss_scores
from delta.attacks.release_tap import ReleaseTap
from delta.errors import ConfigError, MethodError
from delta.methods.delta.cloud import load_cloud_model
from delta.methods.delta.parts import load_private_parts
from delta.methods.registry import method_class
from delta.release.noise import NoiseKey
from delta.training.config import FitConfig, TrainConfig
from delta.training.private_stage import Labelled
from delta.training.uploads import release_records
from tests.trained import settings

CPU = torch.device("cpu")
POOL = 400
OVERFIT = TrainConfig.of(
    settings(
        cloud_fit=FitConfig(epochs=12, batch=32, learning_rate=1e-2),
        main_fit=FitConfig(epochs=20, batch=32, learning_rate=1e-2),
    )
)
ONE_EPOCH = TrainConfig.of(settings(cloud_fit=FitConfig(epochs=1), main_fit=FitConfig(epochs=1)))


@pytest.fixture(scope="module")
def pool(trained):
    """Some training records."""
    data = trained.data.train.limited(POOL, seed=0)
    x = trained.private.input.preprocess(data.images)
    return Labelled(x, data.labels, data.ids, data.subjects)


def _overfit(trained, pool, masks):
    """Cloud models that know those in their masks by heart, and what they say of the pool."""
    bundle = trained.bundles["none"]
    tap = ReleaseTap(bundle)
    bits = release_records(load_private_parts(bundle), tap.release, pool, key=NoiseKey(bytes(32)))
    models = train_cloud_shadows(bundle, bits, pool.y, masks, config=OVERFIT, seed=2, device=CPU)
    return signals_of(models, pool.x, pool.y, asks_releases(tap, draws=4, seed=0))


def _as_targets(signals, masks, score):
    """Scores of members and of others, each model in turn the target."""
    found = [score(signals, masks, target) for target in range(len(masks))]
    members = torch.cat([s[m] for s, m in zip(found, masks, strict=True)])
    others = torch.cat([s[~m] for s, m in zip(found, masks, strict=True)])
    return members, others


def _lira(signals, masks, target):
    rest = [number for number in range(len(masks)) if number != target]
    return lira_scores(signals.confidence[target], signals.confidence[rest], masks[rest])


def _loss(signals, masks, target):
    return loss_scores(signals.loss[target])


def test_an_overfit_model_gives_its_members_away(trained, pool):
    masks = shadow_masks(POOL, shadows=6, seed=1)[-1:]
    signals = _overfit(trained, pool, masks)
    known = masks[0]
    assert signals.accuracy(0, known) > 95
    assert signals.accuracy(0, ~known) < 75
    score = _loss(signals, masks, 0)
    assert curve_of(score[known], score[~known]).interval[0] > 0.7


@pytest.mark.slow
def test_lira_beats_the_loss_at_few_false_alarms(trained, pool):
    masks = shadow_masks(POOL, shadows=6, seed=1)
    signals = _overfit(trained, pool, masks)
    best = curve_of(*_as_targets(signals, masks, _lira))
    plain = curve_of(*_as_targets(signals, masks, _loss))
    assert best.caught[1].resolved
    assert best.caught[1].interval[0] > 2 * plain.caught[1].interval[1]
    assert best.auc > plain.auc


def test_a_model_that_knows_no_candidate_tells_none(trained):
    bundle = trained.bundles["none"]
    model = load_cloud_model(bundle.cloud_part)
    signals = signals_of(
        [model], trained.x, trained.test.y, asks_releases(ReleaseTap(bundle), draws=4, seed=0), reach=1
    )
    half = torch.rand(len(trained.x), generator=torch.Generator().manual_seed(0)) < 0.5
    for score in (loss_scores(signals.loss[0]), signals.kept[0].sum(0)):
        low, high = curve_of(score[half], score[~half]).interval
        assert low < 0.5 < high


def test_the_main_model_is_retrained_as_it_was_built(trained, pool):
    bundle = trained.bundles["none"]
    ask = asks_main(load_private_parts(bundle))
    masks = shadow_masks(POOL, shadows=4, seed=3)[-1:]
    (model,) = train_main_shadows(bundle, pool.x, pool.y, masks, ask, config=OVERFIT, seed=4)
    like = trained.private.main.state_dict()
    assert {name: t.shape for name, t in model.state_dict().items()} == {n: t.shape for n, t in like.items()}
    signals = signals_of([model], pool.x, pool.y, ask)
    assert signals.accuracy(0, masks[0]) > 95
    assert signals.draws == 1


def test_noise_is_drawn_anew_and_averaged(trained):
    bundle = trained.bundles["noise"]
    tap, x = ReleaseTap(bundle), trained.x[:8]
    first, second = asks_releases(tap, draws=2, seed=0)(x)
    assert first.shape == (8, *tap.shape)
    assert not torch.equal(first, second)
    assert len(asks_releases(ReleaseTap(trained.bundles["none"]), draws=9, seed=0)(x)) == 1
    payload = torch.zeros(2, 3, dtype=torch.uint8)
    assert asks_stored()(payload) == [payload]


def test_a_run_attacks_both_models_in_every_way(trained):
    bundle = trained.bundles["noise"]
    small = MembershipSettings(shadows=4, pool=40, draws=2, reach=1)
    report = run_membership(bundle, trained.data, Recipe(ONE_EPOCH), small)
    rows = {(r.target, r.copy, r.attack, r.sees) for r in report.results}
    simulated, stored, main = "simulated releases", "the stored release", "main input"
    assert rows == {
        ("cloud model", "bundle's", "label-only", simulated),
        ("cloud model", "bundle's", "loss", simulated),
        ("main model", "bundle's", "label-only", main),
        ("main model", "bundle's", "loss", main),
        ("cloud model", "retrained", "label-only", simulated),
        ("cloud model", "retrained", "loss", simulated),
        ("cloud model", "retrained", "lira", simulated),
        ("cloud model", "retrained", "lira", stored),
        ("main model", "retrained", "label-only", main),
        ("main model", "retrained", "loss", main),
        ("main model", "retrained", "lira", main),
    }
    own = next(r for r in report.results if r.copy == "bundle's")
    assert (own.curve.positives, own.curve.negatives) == (540, 100)  # nine tenths of the training records
    figures = report.to_json()
    assert {row["shadows"] for row in figures if row["attack"] == "lira"} == {4}
    assert all(row["members"] + row["non_members"] == 40 for row in figures if row["copy"] == "retrained")
    assert report.strongest("cloud model").sees == simulated
    assert any("0.1 % takes 1,000" in note for note in report.notes)
    assert len(report.verdict()) == 2
    assert not any("private" in line for line in report.verdict())


def test_only_delta_has_such_models(trained):
    other = method_class("cloud-only").bundle_of(trained.whole)
    with pytest.raises(MethodError, match="leave membership out"):
        run_membership(other, trained.data, Recipe(ONE_EPOCH))


def test_data_must_be_the_bundles(trained):
    wrong = replace(trained.data.train, pixels=torch.zeros(600, 1, 8, 8))
    other = replace(
        trained.data, train=wrong, test=replace(trained.data.test, pixels=torch.zeros(100, 1, 8, 8))
    )
    with pytest.raises(ConfigError, match="takes records of"):
        run_membership(trained.bundles["none"], other, Recipe(ONE_EPOCH))


def test_the_recipe_is_that_of_the_runs_folder(trained, bundle_dirs, tmp_path):
    bundle = trained.bundles["none"]
    guessed = recipe_of(bundle, bundle_dirs["none"])
    assert "do not lie beside" in guessed.notes[0]
    (tmp_path / "run.json").write_text(
        '{"config": {"noise": "none", "seed": 5, "cloud_fit": {"epochs": 3}, "data": {"source": "embedded", '
        '"limit": 200}}}'
    )
    found = recipe_of(bundle, tmp_path / "bundle")
    assert (found.config.seed, found.config.cloud_fit.epochs, found.limit, found.notes) == (5, 3, 200, ())
    assert len(found.members(trained.data.train)) == 180
