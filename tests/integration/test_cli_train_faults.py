"""`delta train` as a command: one clear line for every fault, before any work, and nothing lost."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from delta_server.app import ServerThread
from delta_server.config import ServerConfig
from safetensors.torch import save_file

from delta.errors import (
    CheckpointError,
    CloudMismatchError,
    CloudUnavailableError,
    ConfigError,
    DataError,
    InputError,
    ModelError,
    SplitError,
)
from delta.models import resnet_small
from tests.commands import fails
from tests.own_target import make_home, save_weights, write_own_config
from tests.tiny_runs import entered, settings, write_config


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's model, its weights, and data."""
    return make_home(tmp_path_factory.mktemp("home"))


# Faults of the input


def test_configurations_that_are_none(run, tmp_path):
    good = settings()
    path = tmp_path / "run.yaml"

    def refused(value: Any, *words: str) -> None:
        path.write_text(value if isinstance(value, str) else yaml.safe_dump(value))
        fails(run("train", "--config", path, "--out", tmp_path / "out"), ConfigError, "run.yaml", *words)

    fails(run("train", "--config", tmp_path / "absent.yaml"), ConfigError, "absent.yaml")
    refused("- a\n- list\n")
    refused("{not: yaml")
    refused({**good, "colour": "red"}, "colour")
    refused(
        {key: value for key, value in good.items() if key != "noise"}, "noise is not set", "none", "epsilon"
    )
    refused({**good, "budget": {"epsilon": 8}}, "budget: unlimited")
    refused({**good, "noise": {"epsilon": -1}, "rank": 0}, "epsilon", "rank")
    refused({**good, "labels": "randomized-response"}, "epsilon")
    refused({**good, "data": {"source": "embedded", "target": "a:b"}}, "not both")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cloud", "nonsense"], ["nonsense", "HOST:PORT"]),
        (["--cloud", "127.0.0.1:0"], ["port"]),
        (["--cloud", "127.0.0.1:99999"], ["HOST:PORT"]),
        (["--cloud", "127.0.0.1:1", "--workers", "2"], ["--workers"]),
        (["--set", "seed"], ["key=value"]),
        (["--set", "seed=[1"], ["not YAML"]),
        (["--set", "seed=one"], ["seed"]),
        (["--device", "tpu"], ["device", "tpu"]),
        (["--limit", "1"], ["--limit"]),
        (["--workers", "0"], ["--workers"]),
        (["--set", "model.arguments.classes=3"], ["3 classes", "4"]),
        (["--set", "promote={public_data: 'generated:3x1x16x16', min_cloud_accuracy: 1}"], ["public_data"]),
    ],
)
def test_wrong_options(run, tmp_path, arguments, words):
    config = write_config(tmp_path / "run.yaml")
    fails(run("train", "--config", config, "--out", tmp_path / "out", *arguments), ConfigError, *words)
    assert not (tmp_path / "out" / "bundle").exists()


def test_data_that_are_none(run, home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    for build, words in (
        ("unlabelled", ["record 80", "no label"]),
        ("unknown", ["record 20", "unknown class"]),
        ("absent", ["absent"]),
    ):
        config = write_own_config(tmp_path / "run.yaml", home, build=build)
        fails(run("train", "--config", config, "--out", tmp_path / "out"), DataError, *words)
    config = write_config(tmp_path / "run.yaml")
    done = run("train", "--config", config, "--data", "cifar10:nowhere", "--out", tmp_path / "out")
    fails(done, DataError, "nowhere")
    assert not (tmp_path / "out").exists()


def test_a_cloud_that_is_not_there_shows_before_any_work(run, free_port, tmp_path):
    config = write_config(tmp_path / "run.yaml")
    done = run("train", "--config", config, "--out", tmp_path / "out", "--cloud", f"127.0.0.1:{free_port}")
    fails(done, CloudUnavailableError, f"127.0.0.1:{free_port}")


def test_a_cloud_that_does_not_allow_the_model_says_so_before_any_work(run, home, tmp_path, monkeypatch):
    """Before anything is released, too."""
    monkeypatch.chdir(home)
    config, out = write_own_config(tmp_path / "run.yaml", home), tmp_path / "out"
    with ServerThread(ServerConfig(bundles=(), training=tmp_path / "store")) as cloud:
        done = run("train", "--config", config, "--out", out, "--cloud", cloud.address)
        fails(done, CloudMismatchError, "mymodel:Net", "--allow mymodel:Net")
    assert not (out / "releases").exists()
    assert entered(out) == []


def test_a_folder_of_another_run_is_left_alone(run, free_port, tmp_path):
    """Until it is given up; the ledger and what was released stay even then."""
    out = tmp_path / "out"
    call = ("train", "--config", write_config(tmp_path / "run.yaml"), "--out", out)
    call = (*call, "--cloud", f"127.0.0.1:{free_port}")
    fails(run(*call), CloudUnavailableError)
    before = (out / "run.json").read_bytes()
    (out / "checkpoints").mkdir()
    (out / "checkpoints" / "kept").write_text("x")
    fails(run(*call, "--set", "cloud_fit.epochs=2"), CheckpointError, "cloud_fit.epochs", "--restart")
    fails(run(*call, "--seed", "1"), CheckpointError, "seed")
    fails(run(*call, "--limit", "100"), CheckpointError, "data.limit", "the data")
    assert (out / "run.json").read_bytes() == before
    assert (out / "checkpoints" / "kept").exists()
    fails(run(*call, "--seed", "1", "--restart"), CloudUnavailableError)
    assert not (out / "checkpoints").exists()
    assert (out / "ledger.jsonl").exists()
    (out / "run.json").write_text("{}")
    fails(run(*call), CheckpointError, "run.json", "damaged")


def test_figures_that_cannot_be_written_are_refused_before_any_work(run, tmp_path):
    config = write_config(tmp_path / "run.yaml")
    (tmp_path / "file").write_text("")
    for arguments in (
        ["--json", tmp_path / "file" / "x.json"],
        ["--json", tmp_path],
        ["--out", tmp_path / "file"],
    ):
        done = run("train", "--config", config, "--out", tmp_path / "out", *arguments)
        fails(done, InputError, "cannot be written")
        assert not (tmp_path / "out").exists()


# Faults of the model


def test_weights_that_do_not_fit_and_a_model_that_is_not_there(run, home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    other = tmp_path / "other.safetensors"
    save_file(resnet_small(classes=2, in_channels=1).state_dict(), other)
    call = ("train", "--config", write_own_config(tmp_path / "run.yaml", home), "--out", tmp_path / "out")
    for change, error, words in (
        (f"model.weights={other}", ModelError, ["other.safetensors"]),
        ("model.weights=absent.safetensors", ModelError, ["absent.safetensors"]),
        ("model.target=mymodel:Nets", ModelError, ["Nets", "did you mean Net"]),
        ("model.split_at=layer9", SplitError, ["layer9"]),
    ):
        done = run(*call, "--set", change)
        fails(done, error, *words)
    assert not (tmp_path / "out").exists()


def test_another_model_under_the_same_name_is_another_run(run, home, free_port, tmp_path, monkeypatch):
    """Fits that were kept are of the weights that they learned from."""
    monkeypatch.chdir(home)
    config, out = write_own_config(tmp_path / "run.yaml", home), tmp_path / "out"
    weights = tmp_path / "w.safetensors"
    weights.write_bytes((home / "w.safetensors").read_bytes())
    call = ("train", "--config", config, "--out", out, "--cloud", f"127.0.0.1:{free_port}")
    call = (*call, "--set", f"model.weights={weights}")
    fails(run(*call), CloudUnavailableError, f"127.0.0.1:{free_port}")
    save_weights(weights, seed=6)
    fails(run(*call), CheckpointError, "the model's weights", "--restart")
