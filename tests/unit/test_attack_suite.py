"""The suite: its report, its floors, what it refuses, and that pictures come only where they were asked for."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from delta.attacks.classifier import train_judge
from delta.attacks.label_leak import label_leak
from delta.attacks.metrics import check_ssim
from delta.attacks.release_tap import ReleaseTap
from delta.attacks.settings import AttackRecords, AttackSettings
from delta.attacks.suite import run_attacks
from delta.errors import ConfigError
from delta.methods.registry import method_class
from tests.trained import small_digits

CPU = torch.device("cpu")
QUICK = {"epochs": 1, "width": 4, "batch": 64, "classifier_epochs": 1}


@pytest.fixture(scope="module")
def report(trained):
    settings = AttackSettings(**QUICK, candidates=(100, 700), observations=(1, 4), patch=4, examples=2)
    return run_attacks(trained.bundles["noise"], trained.data, settings)


def test_the_report_holds_every_tap_attack_and_floor(report):
    figures = json.loads(json.dumps(report.to_json()))
    assert figures["kind"] == "attack"
    assert figures["tee"] == "simulated"
    assert (figures["seed"], figures["victims"], figures["attacker"]["auxiliary_records"]) == (0, 100, 600)
    assert [(row["tap"], row["looks"]) for row in figures["taps"]] == [
        ("release", 1),
        ("release", 4),
        ("raw-ir", 1),
        ("random-bits", 1),
    ]
    for row in figures["taps"]:
        assert 0 <= row["ssim"] <= 1
        assert row["ssim_se"] > 0
        assert row["decoder"]["epochs"] == 1
        assert row["decoder"]["loss"] > 0
        assert row["reidentification"]["candidates"] == 100
    assert set(figures["floors"]) == {"mean_image", "originals", "random_bits"}
    assert [(r["tap"], r["looks"], r["candidates"], r["patch"]) for r in figures["matching"]] == [
        ("release", 1, 100, 4),
        ("release", 1, 700, 4),
        ("release", 4, 100, 4),
        ("release", 4, 700, 4),
        ("raw-ir", 1, 100, None),
        ("random-bits", 1, 100, None),
    ]
    assert figures["labels"]["prior"] == 10.0
    assert any("asking again is worth nothing" in note for note in figures["notes"])


def test_the_verdict_never_promises(report):
    text = report.verdict()
    assert "Another attack may do better" in text
    assert "too weak to say" in text  # one epoch does not draw the raw IR
    assert "private" not in text.lower()


def test_pictures_are_whole_and_come_only_where_asked_for(trained, report):
    assert len(report.examples) == 2
    original = Image.open(io.BytesIO(base64.b64decode(report.examples[0].original)))
    expected = (trained.data.test.images[0, 0] * 255).round().byte()
    assert torch.equal(torch.from_numpy(np.asarray(original).copy()), expected)
    settings = AttackSettings(**QUICK, attacks=("matching",), taps=("release",), candidates=(100,))
    assert run_attacks(trained.bundles["none"], trained.data, settings).to_json()["examples"] == []


def test_noiseless_bits_are_matched_without_a_second_look(trained):
    settings = AttackSettings(attacks=("matching", "labels"), taps=("release",), observations=(1, 5))
    found = run_attacks(trained.bundles["none"], trained.data, settings)
    assert [row.result.candidates for row in found.matching] == [700]
    assert found.matching[0].result.top1 > 90
    assert any("700 records" in note for note in found.notes)
    assert any("no noise" in note for note in found.notes)
    assert found.taps == ()
    assert found.labels["cloud_accuracy"] > found.labels["prior"]


def test_the_label_leak_is_the_accuracy_of_the_cloud_model(trained):
    stage, tap = trained.stages["none"], ReleaseTap(trained.bundles["none"])
    seen = tap.capture(trained.x, trained.test.ids)
    with torch.no_grad():
        expected = (stage.cloud(seen).argmax(1) == trained.test.y).double().mean() * 100
    leak = label_leak(trained.bundles["none"], seen, trained.test.y)
    assert leak.accuracy == pytest.approx(float(expected))
    assert leak.interval[0] < leak.accuracy < leak.interval[1]
    slalom = method_class("slalom").bundle_of(trained.whole)
    assert label_leak(slalom, trained.x, trained.test.y) is None


def test_the_judge_knows_images_and_measures_likeness(trained):
    data = trained.data
    judge = train_judge(data.train.images, data.train.labels, classes=10, epochs=6)
    images = data.test.images
    assert judge.accuracy(images, data.test.labels) > 40
    assert float(judge.distance(images, images).max()) < 1e-6
    near = judge.distance(images, (images + 0.02).clamp(0, 1)).mean()
    far = judge.distance(images, images.roll(1, 0)).mean()
    assert 0 < float(near) < float(far)
    # The features' distance is the formula's: unit channels, squared, summed over channels, averaged over places.
    a, b = (judge.model.layer1(judge.model.act(judge.model.bn1(judge.model.conv1((x[:1] - 0.5) / 0.25))))
            for x in (images, images.roll(1, 0)))  # fmt: skip
    unit = [x / x.square().sum(1, keepdim=True).sqrt().clamp_min(1e-10) for x in (a, b)]
    first = (unit[0] - unit[1]).square().sum(1).mean() / 3
    difference = (judge.features(images[:1]) - judge.features(images.roll(1, 0)[:1]))[0, : a[0].numel()]
    torch.testing.assert_close(difference.square().sum() / 2, first, rtol=1e-3, atol=1e-5)
    again = judge.reidentified(images, images, torch.arange(100))
    assert again.top1 > 98


# What is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attacks": ("guessing",)}, "unknown attack guessing; there are matching, labels, decoder"),
        ({"attacks": ()}, "unknown attack"),
        ({"observations": (0,)}, "at least 1"),
        ({"candidates": (1,)}, "at least 2"),
        ({"taps": ("release", "release")}, "taps names one twice"),
        ({"width": 2}, "width"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        AttackSettings.parse(settings, what="attack")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"candidates": (5000,)}, "5,000 candidates are asked for, and the data hold 700 records"),
        ({"victims": 101}, "101 victims are asked for, and the data hold 100 test records"),
        ({"auxiliary": 601}, "600 training records"),
    ],
)
def test_more_than_there_are_is_refused(trained, settings, words):
    with pytest.raises(ConfigError, match=words):
        AttackRecords.of(trained.bundles["none"], trained.data, AttackSettings(**settings), CPU)


def test_data_of_another_shape_and_unknown_taps_and_patches_are_refused(trained):
    bundle = trained.bundles["none"]
    whole = method_class("cloud-only").bundle_of(trained.whole)
    other = small_digits(train=20, test=10)
    bigger = type(other)(*(type(d).of(
        name=d.name, pixels=d.images.repeat(1, 1, 2, 2), labels=d.labels, class_names=d.class_names
    ) for d in (other.train, other.test)))  # fmt: skip
    with pytest.raises(ConfigError, match="takes records of 1×16×16 in 10 classes, the data are 1×32×32"):
        run_attacks(bundle, bigger, AttackSettings())
    with pytest.raises(ConfigError, match="unknown tap 'wire'"):
        run_attacks(bundle, trained.data, AttackSettings(taps=("wire",)))
    with pytest.raises(ConfigError, match="unknown tap 'release'"):
        run_attacks(whole, trained.data, AttackSettings(taps=("release",)))


def test_victims_are_none_of_the_attackers_records(trained):
    settings = AttackSettings(victims=20, auxiliary=50, candidates=(30,))
    records = AttackRecords.of(trained.bundles["none"], trained.data, settings, CPU)
    assert len(records.victims) == 20
    assert len(records.auxiliary) == 50
    assert records.pool.shape[0] == 30
    assert torch.equal(records.pool[:20], records.victims)
    assert set(records.ids) <= set(trained.data.test.ids)


def test_ssim_is_asked_for_before_any_work(trained, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="torchmetrics"):
        check_ssim()
    with pytest.raises(ConfigError, match="torchmetrics"):
        run_attacks(trained.bundles["none"], trained.data, AttackSettings())
