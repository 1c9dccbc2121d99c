"""`delta train` as a command: what it leaves, what of it can be served, and one clear line for every fault."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from delta_server.app import ServerThread
from delta_server.config import ServerConfig
from delta_server.launch import ServerProcess
from PIL import Image
from safetensors.torch import save_file

from delta.bundle.store import load_bundle
from delta.data.load import load_dataset
from delta.errors import (
    BudgetExceededError,
    CheckpointError,
    CloudMismatchError,
    CloudUnavailableError,
    ConfigError,
    DataError,
    DeltaError,
    spec_of,
)
from delta.models import resnet_small
from delta.privacy.events import RandomizedResponseLabel
from delta.privacy.ledger_file import read_ledger
from tests.commands import Outcome, fails
from tests.tiny_runs import DATA, RECORDS, entered, figures_of, outcome_of, settings, write_config

HELD_OUT, TEST = RECORDS // 10, RECORDS // 5
ACCURACIES = {"private_only", "main_alone", "delta", "random_bits", "noiseless_bits", "main_only"}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A cloud that trains for everybody."""
    folder = tmp_path_factory.mktemp("cloud")
    with ServerProcess.start(
        training=folder / "store", threads=1, env={"OMP_NUM_THREADS": "1"}, log_path=folder / "server.log"
    ) as process:
        yield process


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four images such as the runs were trained on."""
    root = tmp_path_factory.mktemp("images")
    for i, image in enumerate(load_dataset(DATA).test.images[:4]):
        Image.fromarray((255 * image[0]).round().byte().numpy()).save(root / f"{i}.png")
    return root


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _refuses(outcome: Outcome, error: type[DeltaError], *words: str) -> None:
    """Progress, and then one line that says what was wrong."""
    last = outcome.err.strip().splitlines()[-1]
    fails(Outcome(outcome.code, outcome.out, last), error, *words)
    assert outcome.err.count("error: ") == 1


def _answers(run, images: Path, bundle: Path, address: str, *more: object) -> None:
    done = run("infer", images, "--bundle", bundle, "--cloud", address, "--json", "-", *more)
    assert (done.code, done.err) == (0, "")
    assert [row["used_cloud"] for row in json.loads(done.out)["records"]] == [True] * 4


# What it leaves


def test_one_command_trains_in_a_cloud_of_its_own_and_leaves_what_can_be_served(run, images, tmp_path):
    config, out = write_config(tmp_path / "run.yaml"), tmp_path / "out"
    done = run("train", "--config", config, "--out", out, "--json", tmp_path / "figures.json")
    assert done.code == 0, done.err
    figures = figures_of(tmp_path / "figures.json")
    assert figures_of(out / "summary.json") == figures
    assert set(figures["accuracy"]) == ACCURACIES
    assert all(0 <= value <= 100 for value in figures["accuracy"].values())
    assert figures["records"] == {"training": RECORDS, "test": TEST}
    assert figures["releases"] == {"total": RECORDS, "held_out": HELD_OUT, "debited": RECORDS}
    # A release is 16×16 bits, and its label and mark are bits, too; specifications and handshake come on top.
    assert 32 < figures["bytes_per_record"]["up"] < 32 + 12
    assert figures["privacy"]["claim"] == "none"
    assert figures["privacy"]["label"] == "empirical obfuscation"
    assert figures["budget"] == "unlimited"
    assert list(figures["stage_seconds"]) == [
        *("private", "release", "upload", "cloud", "controls", "main_only")
    ]
    assert sum(figures["stage_seconds"].values()) < figures["seconds"]
    assert (figures["tee"], figures["promoted"]) == ("simulated", False)
    for stage in (
        "whole model",
        "main model",
        "upload, cloud model",
        "cloud model",
        "main-only, reads image",
    ):
        assert done.err.count(f"\n{stage}: done in ") + done.err.startswith(f"{stage}: done") == 1
    for words in ("main model alone", "random bits", "claim: none", "tee: simulated", "serve it with"):
        assert words in done.out
    assert len(set(entered(out))) == RECORDS
    assert not list(out.glob("releases/*.key"))
    bundle = load_bundle(out / "bundle")
    assert bundle.manifest.cloud_hash == figures["cloud_hash"]
    assert "pattern" not in (out / "cloud.log").read_text()
    with ServerProcess.start(out / "bundle", threads=1) as server:
        _answers(run, images, out / "bundle", server.address)
        # A cloud that serves and does not train: told before any work.
        other = run("train", "--config", config, "--out", tmp_path / "other", "--cloud", server.address)
        fails(other, CloudMismatchError, "does not train", "--training")


def test_noise_and_randomized_labels_are_in_the_claim_the_manifest_and_the_ledger(run, cloud, tmp_path):
    out = tmp_path / "out"
    config = write_config(
        tmp_path / "run.yaml",
        noise={"epsilon": 8},
        labels={"kind": "randomized-response", "epsilon": 2},
        budget={"mu": 40},  # the records name no subject, and count as one person's
    )
    done = run("train", "--config", config, "--out", out, "--cloud", cloud.address, "--json", "-")
    assert done.code == 0, done.err
    figures = json.loads(done.out)  # and nothing else
    privacy = figures["privacy"]
    assert privacy["epsilon"] == pytest.approx(8)
    assert privacy["ceiling_bits"] == pytest.approx(0.50, abs=0.01)
    assert "per record, local, replace-one" in privacy["claim"]
    assert figures["labels"] == {"kind": "randomized-response", "epsilon": 2}
    assert any("randomized" in text for text in privacy["conditions"]) or "randomized" in str(privacy)
    manifest = load_bundle(out / "bundle").manifest
    assert manifest.lineage["noise"] == "epsilon=8"
    assert "randomized-response" in manifest.model_dump_json()
    entries = read_ledger(out / "ledger.jsonl").entries()
    told = [debit for debit in entries if isinstance(debit.event, RandomizedResponseLabel)]
    assert (len(entries), len(told)) == (2 * RECORDS - HELD_OUT, RECORDS - HELD_OUT)
    assert {debit.event.epsilon for debit in told} == {2.0}


def test_interactive_training_ends_in_a_model_that_its_cloud_may_serve(run, cloud, images, tmp_path):
    config, out = write_config(tmp_path / "run.yaml", name="exchange"), tmp_path / "out"
    call = ("train", "--config", config, "--out", out, "--cloud", cloud.address, "--set", "mode=interactive")
    done = run(*call, "--set", "promote=always", "--json", tmp_path / "figures.json")
    assert done.code == 0, done.err
    figures = figures_of(tmp_path / "figures.json")
    assert (figures["mode"], figures["promoted"], figures["bad_answers"]) == ("interactive", True, 0)
    assert figures["bytes_per_record"]["up"] > 32
    _answers(run, images, out / "bundle", cloud.address)


def test_public_data_decide_what_is_served_and_a_run_again_sends_nothing(run, cloud, images, tmp_path):
    config, out = write_config(tmp_path / "run.yaml", name="public"), tmp_path / "out"

    def promoted(rule: str) -> bool:
        done = run(
            *("train", "--config", config, "--out", out, "--cloud", cloud.address),
            *("--set", f"promote={rule}", "--json", tmp_path / "figures.json"),
        )
        assert done.code == 0, done.err
        return bool(figures_of(tmp_path / "figures.json")["promoted"])

    public = f"public_data: '{DATA}', min_cloud_accuracy"
    assert not promoted(f"{{{public}: 100}}")
    first = outcome_of(out)
    done = run("infer", images, "--bundle", out / "bundle", "--cloud", cloud.address)
    assert "mismatch" in done.err
    assert promoted(f"{{{public}: 0}}")
    assert promoted("always")
    _answers(run, images, out / "bundle", cloud.address)
    assert outcome_of(out) == first
    figures = figures_of(tmp_path / "figures.json")
    assert figures["releases"]["debited"] == 0
    assert figures["bytes_per_record"]["up"] < 32  # the cloud has the releases
    assert len(entered(out)) == RECORDS + 4  # and the images that were asked about


# A user's own

MODEL = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.layer2(self.layer1(x)).mean((2, 3)))
"""
RECORD = """
import torch


def build():
    made = torch.Generator().manual_seed(0)
    images = torch.rand(100, 1, 16, 16, generator=made)
    records = [(f"r{i}", f"person-{i % 50}", image, "odd" if i % 2 else "even") for i, image in enumerate(images)]
    return records[:80], records[80:]


def unlabelled():
    train, test = build()
    return [*train, ("x", "", train[0][2], None)], test


def unknown():
    train, test = build()
    return train, [*test, ("x", "", train[0][2], "neither")]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's model, its weights, and data."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "mymodel.py").write_text(MODEL)
    (folder / "mydata.py").write_text(RECORD)
    names: dict[str, Any] = {}
    exec(MODEL, names)
    torch.manual_seed(5)
    save_file(names["Net"]().state_dict(), folder / "w.safetensors")
    return folder


def _own(folder: Path, path: Path, *, build: str = "build", **changes: Any) -> Path:
    model = {"target": "mymodel:Net", "weights": str(folder / "w.safetensors"), "split_at": "layer2"}
    found = settings(model=model, data={"target": f"mydata:{build}"}, backbone="model", **changes)
    del found["whole"]
    path.write_text(yaml.safe_dump(found))
    return path


def test_a_users_own_model_is_the_teacher_as_it_came_and_its_bundle_is_served(
    run, home, tmp_path, monkeypatch
):
    """A process of its own, in the folder that holds model and data."""
    config, out = _own(home, tmp_path / "run.yaml", noise={"epsilon": 8}), tmp_path / "out"
    command = [sys.executable, "-m", "delta.cli", "train", "--config", str(config), "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DELTA_TRACEBACK": "1"}
    done = subprocess.run(
        [*command, "--json", "-"], cwd=home, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert "whole model" not in done.stderr
    assert figures["privacy"]["person"] != "person level: not accounted"
    assert {subject for subject, _ in entered(out)} == {f"person-{i}" for i in range(50)}
    bundle = load_bundle(out / "bundle")
    assert bundle.manifest.architecture.target == "mymodel:Net"
    assert bundle.manifest.class_names == ("even", "odd")
    for i in range(4):
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / f"{i}.png")
    monkeypatch.chdir(home)
    with ServerThread(ServerConfig(bundles=(out / "bundle",), allow=frozenset({"mymodel:Net"}))) as server:
        _answers(run, tmp_path, out / "bundle", server.address, "--allow", "mymodel:Net")


def test_weights_that_do_not_fit_and_a_model_that_is_not_there(run, home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    other = tmp_path / "other.safetensors"
    save_file(resnet_small(classes=2, in_channels=1).state_dict(), other)
    call = ("train", "--config", _own(home, tmp_path / "run.yaml"), "--out", tmp_path / "out")
    for change, words in (
        (f"model.weights={other}", ["weights"]),
        ("model.weights=absent.safetensors", ["absent.safetensors"]),
        ("model.target=mymodel:Nets", ["Nets", "did you mean Net"]),
        ("model.split_at=layer9", ["layer9"]),
    ):
        done = run(*call, "--set", change)
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        assert done.code in (2, 3, 4, 5)
        for word in words:
            assert word in done.err
    assert not (tmp_path / "out").exists()


def test_another_model_under_the_same_name_is_another_run(run, home, free_port, tmp_path, monkeypatch):
    """Fits that were kept are of the weights that they learned from."""
    monkeypatch.chdir(home)
    config, out = _own(home, tmp_path / "run.yaml"), tmp_path / "out"
    weights = tmp_path / "w.safetensors"
    weights.write_bytes((home / "w.safetensors").read_bytes())
    call = ("train", "--config", config, "--out", out, "--cloud", f"127.0.0.1:{free_port}")
    call = (*call, "--set", f"model.weights={weights}")
    fails(run(*call), CloudUnavailableError, f"127.0.0.1:{free_port}")
    names: dict[str, Any] = {}
    exec(MODEL, names)
    torch.manual_seed(6)
    save_file(names["Net"]().state_dict(), weights)
    fails(run(*call), CheckpointError, "the model's weights", "--restart")


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
        config = _own(home, tmp_path / "run.yaml", build=build)
        fails(run("train", "--config", config, "--out", tmp_path / "out"), DataError, *words)
    config = write_config(tmp_path / "run.yaml")
    done = run("train", "--config", config, "--data", "cifar10:nowhere", "--out", tmp_path / "out")
    fails(done, DataError, "nowhere")
    assert not (tmp_path / "out").exists()


def test_a_budget_too_small_sends_nothing_and_a_larger_one_goes_on(run, tmp_path):
    config, out = write_config(tmp_path / "run.yaml", noise={"epsilon": 8}), tmp_path / "out"
    store = tmp_path / "store"
    with ServerProcess.start(training=store, threads=1) as cloud:
        call = ("train", "--config", config, "--out", out, "--cloud", cloud.address)
        done = run(*call, "--set", "budget={mu: 23}")
        _refuses(
            done, BudgetExceededError, "too small for the data set", "nothing was sent", "without a subject"
        )
        assert entered(out) == []
        assert not list(store.glob("tenants/*"))
        released = {path.name: path.read_bytes() for path in out.glob("releases/*")}
        done = run(*call, "--set", "budget={mu: 24}")
        assert done.code == 0, done.err
    assert {path.name: path.read_bytes() for path in out.glob("releases/*")} == released
    assert "whole model" not in done.err  # it went on
    assert len(entered(out)) == RECORDS


def test_a_cloud_that_is_not_there_shows_before_any_work(run, free_port, tmp_path):
    config = write_config(tmp_path / "run.yaml")
    done = run("train", "--config", config, "--out", tmp_path / "out", "--cloud", f"127.0.0.1:{free_port}")
    fails(done, CloudUnavailableError, f"127.0.0.1:{free_port}")


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
        assert done.code == spec_of(DataError).exit_code
        assert done.err.startswith("error: ")
        assert "cannot be written" in done.err
        assert not (tmp_path / "out").exists()
