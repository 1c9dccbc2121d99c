"""A run's YAML file: short forms, single changes, and settings that must agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from delta.errors import ConfigError
from delta.privacy.gaussian import mu_of
from delta.training.config import TrainConfig
from delta.training.run_config import DataConfig, ModelConfig, PromoteConfig, RunConfig


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def read(path: Path, text: str = "noise: none\n", *changes: str) -> RunConfig:
    path.write_text(text)
    return RunConfig.read(path, changes=changes)


def refused(path: Path, text: str, *changes: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path, text, *changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Forms


def test_the_shortest_file_is_a_run_on_the_embedded_digits(path):
    run = read(path)
    assert run == RunConfig(noise="none")
    assert run.data == DataConfig(source="embedded")
    assert run.model == ModelConfig()
    assert run.promote == "never"


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("data: cifar10:data", "data: {source: 'cifar10:data'}"),
        ("labels: disclosed", "labels: {kind: disclosed}"),
        ("data: {source: embedded}", ""),
        ("budget: unlimited", ""),
        ("model: {target: resnet_small}", "model: {split_at: layer1}"),
    ],
)
def test_a_word_stands_for_what_it_names(path, short, long):
    assert read(path, f"noise: none\n{short}\n") == read(path, f"noise: none\n{long}\n")


@pytest.mark.parametrize("budget", ["unlimited", "{mu: 2}", "{epsilon: 8}", "{epsilon: 8, delta: 1.0e-6}"])
def test_the_settings_of_training_are_those_of_the_run(path, budget):
    run = read(path, f"noise: {{epsilon: 8}}\ndata: embedded\nrank: 3\nbudget: {budget}\npromote: always\n")
    assert type(run.training) is TrainConfig
    assert run.training.model_dump() == run.model_dump(exclude={"model", "data", "promote"})


@pytest.mark.parametrize("budget", ["unlimited", "{mu: 2}", "{epsilon: 8}"])
def test_a_run_survives_json_and_keeps_its_hash(path, budget):
    run = read(
        path,
        f"noise: {{epsilon: 8}}\nbudget: {budget}\ndata: {{target: 'a:b'}}\nmodel: {{weights: w.safetensors}}\n",
    )
    again = RunConfig.model_validate_json(run.model_dump_json())
    assert again == run
    assert again.content_hash() == run.content_hash()


# Single changes


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        ("", ["seed=5"], {"seed": 5}),
        ("", ["noise={epsilon: 8}"], {"noise": {"epsilon": 8.0, "delta": 1e-5}}),
        ("", ["noise.epsilon=4", "noise.delta=1.0e-6"], {"noise": {"epsilon": 4.0, "delta": 1e-6}}),
        ("", ["data.limit=50"], {"data.source": "embedded", "data.limit": 50}),
        ("data: cifar10:d", ["data.limit=50"], {"data.source": "cifar10:d", "data.limit": 50}),
        ("", ["data=cifar10:d", "data.limit=50"], {"data.source": "cifar10:d", "data.limit": 50}),
        ("data: {source: x, limit: 9}", ["data=y"], {"data.source": "y", "data.limit": None}),
        ("", ["data.source=null", "data.target=a.b:c"], {"data.source": None, "data.target": "a.b:c"}),
        ("", ["main.max_macs=7", "main.distil=false"], {"main.max_macs": 7, "main.distil": False}),
        ("main: {distil: false}", ["main.max_macs=7"], {"main.max_macs": 7, "main.distil": False}),
        ("", ["labels=randomized-response", "labels.epsilon=3"], {"labels.epsilon": 3.0}),
        ("", ["model.arguments.width=4"], {"model.arguments": {"width": 4}}),
        ("seed: 1", ["seed=2", "seed=3"], {"seed": 3}),
        ("", ["name=a=b", "name=ab"], {"name": "ab"}),
        ("", ["model.weights=w.safetensors"], {"whole": None, "model.weights": "w.safetensors"}),
        ("", ["whole=null"], {"whole": None}),
    ],
)
def test_a_change_is_as_if_it_were_written_in_the_file(path, text, changes, expected):
    found = read(path, f"noise: none\n{text}\n", *changes).model_dump(mode="json")
    for name, value in expected.items():
        place: Any = found
        for key in name.split("."):
            place = place[key]
        assert place == value


def test_changes_leave_the_file_and_an_anchor_in_it_alone(path):
    text = "noise: none\nmain_fit: &fit {epochs: 2}\ncloud_fit: *fit\n"
    run = read(path, text, "main_fit.epochs=9")
    assert (run.main_fit.epochs, run.cloud_fit.epochs) == (9, 2)
    assert path.read_text() == text


@pytest.mark.parametrize("change", ["seed", "", "=5", "a..b=1", ".a=1", "a.=1"])
def test_a_change_that_is_none_is_refused(path, change):
    assert f"--set {change!r} is no change; write key=value" in refused(path, "noise: none\n", change)


def test_a_change_that_is_not_yaml_or_not_valid_is_refused(path):
    assert "is not YAML" in refused(path, "noise: none\n", "noise={epsilon")
    assert "seed" in refused(path, "noise: none\n", "seed=-1")
    assert "colour" in refused(path, "noise: none\n", "colour=blue")
    assert "data.colour" in refused(path, "noise: none\n", "data.colour=blue")
    assert "seed" in refused(path, "noise: none\n", "seed.inner=1")
    assert "noise is not set" in refused(path, "seed: 1\n", "seed=2")
    assert read(path, "seed: 1\n", "noise=none").seed == 1


# Settings that must agree


def test_weights_count_as_trained_unless_a_fit_is_given(path):
    given = "noise: none\nmodel: {target: 'a:b', weights: w.safetensors}\n"
    assert read(path, given).whole is None
    assert read(path, given + "whole: {epochs: 3}\n").whole.epochs == 3
    assert read(path, "noise: none\nmodel: {target: 'a:b'}\n").whole is not None
    assert read(path, "noise: none\nmodel: {weights: null}\n").whole is not None


PUBLIC = "backbone_provenance: {kind: public, note: by others}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("noise: none\nbudget: {mu: 2}\n", ["needs budget: unlimited"]),
        ("noise: none\nbudget: {epsilon: 8}\n", ["needs budget: unlimited"]),
        ("noise: {epsilon: 8}\nbudget: {}\n", ["budget", "exactly one"]),
        ("noise: {epsilon: 8}\nbudget: {mu: 2, epsilon: 8}\n", ["exactly one"]),
        ("noise: {epsilon: 8}\nbudget: {mu: 2, delta: 1.0e-5}\n", ["delta belongs to epsilon"]),
        ("noise: {epsilon: 8}\nbudget: {mu: 0}\n", ["budget"]),
        ("noise: {epsilon: 8}\nbudget: none\n", ["budget"]),
        ("noise: none\nviews: 2\n", ["views above 1 need augment"]),
        ("noise: none\nviews: 0\naugment: shift\n", ["views"]),
        ("noise: none\ntune_backbone: true\nbackbone: fixed\n", ["backbone: model and basis: pca"]),
        ("noise: none\ntune_backbone: true\nbasis: svd\n", ["backbone: model and basis: pca"]),
        (f"noise: none\n{PUBLIC}", ["needs whole: null"]),
        (f"noise: none\n{PUBLIC}whole: null\nbackbone: fixed\n", ["backbone: model"]),
        (f"noise: none\n{PUBLIC}whole: null\ntune_backbone: true\n", ["tune_backbone: false"]),
        ("noise: none\nlabels: randomized-response\n", ["needs epsilon"]),
        ("noise: none\nlabels: {kind: disclosed, epsilon: 1}\n", ["'disclosed' takes none"]),
        ("noise: none\nlabels: {kind: randomized-response, epsilon: 701}\n", ["labels.epsilon"]),
        ("noise: none\nlabels: secret\n", ["labels"]),
        ("noise: none\nmain: {max_macs: 5, private_macs: 5}\n", ["null for the other"]),
        ("noise: none\nmain: {layout: authors, private_macs: 5}\n", ["authors"]),
        ("noise: none\ndata: {}\n", ["a source such as embedded, or a target"]),
        ("noise: none\ndata: {source: embedded, target: 'a:b'}\n", ["not both"]),
        ("noise: none\ndata: {target: a.b}\n", ["data.target"]),
        ("noise: none\ndata: {target: 'a b:c'}\n", ["data.target"]),
        ("noise: none\ndata: {source: embedded, size: [32]}\n", ["data.size"]),
        ("noise: none\ndata: 7\n", ["data"]),
        ("noise: none\npromote: sometimes\n", ["promote"]),
        ("noise: none\npromote: {min_cloud_accuracy: 50}\n", ["public_data"]),
        ("noise: none\npromote: {public_data: x, min_cloud_accuracy: 101}\n", ["min_cloud_accuracy"]),
        ("noise: none\nprecision: float16\n", ["precision"]),
        ("noise: none\northogonality: -1\n", ["orthogonality"]),
        ("noise: none\nmode: batch\nranks: 3\nmodel: {colour: red}\n", ["mode", "ranks", "model.colour"]),
    ],
)
def test_settings_that_do_not_agree_are_refused_in_one_line(path, text, words):
    message = refused(path, text)
    assert str(path) in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    "text",
    [
        f"noise: none\n{PUBLIC}whole: null\n",
        f"noise: none\n{PUBLIC}model: {{weights: w.safetensors}}\n",
        "noise: none\ntune_backbone: true\n",
        "noise: none\nviews: 3\naugment: shift+flip\n",
        "noise: {epsilon: 8}\nbudget: unlimited\n",
        "noise: none\npromote: {public_data: embedded, min_cloud_accuracy: 50}\n",
    ],
)
def test_settings_that_do_are_taken(path, text):
    assert read(path, text).model_dump(mode="json", exclude_unset=True).keys() >= yaml.safe_load(text).keys()


def test_a_budget_is_the_mu_that_it_says(path):
    noise = "noise: {epsilon: 8}\n"
    assert read(path, noise).subject_budget == "unlimited"
    assert read(path, noise + "budget: {mu: 2.5}\n").subject_budget == 2.5
    for text, delta in (("{epsilon: 8}", 1e-5), ("{epsilon: 8, delta: 1.0e-6}", 1e-6)):
        found = read(path, f"{noise}budget: {text}\n").subject_budget
        assert found == pytest.approx(mu_of(epsilon=8.0, delta=delta))


def test_promotion_by_public_data_names_a_source_and_a_floor(path):
    run = read(path, "noise: none\npromote: {public_data: 'mnist:data', min_cloud_accuracy: 60}\n")
    assert run.promote == PromoteConfig(public_data="mnist:data", min_cloud_accuracy=60.0)
