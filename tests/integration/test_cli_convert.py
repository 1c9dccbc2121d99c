"""`delta convert`, and what `delta serve` and `delta infer` make of bundles of methods other than Delta."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from delta_server.launch import ServerProcess
from PIL import Image
from safetensors.torch import save_file

from delta.bundle.store import load_bundle
from delta.data.records import DataSplits
from delta.errors import (
    BudgetExceededError,
    BundleError,
    CloudUnavailableError,
    ConfigError,
    DataError,
    InputError,
    MethodError,
    ModelError,
    PrivacyParameterError,
    UnknownMethodError,
)
from delta.methods.registry import method_class, method_names
from tests.commands import Outcome, fails
from tests.trained import Trained

DELTA = [sys.executable, "-m", "delta.cli"]
SMALL = ("--model", "resnet_small", "--argument", "width=4")
DATA = ("--data", "generated:4x1x16x16:80")


@pytest.fixture(scope="module")
def images(digits: DataSplits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six greyscale digits."""
    root = tmp_path_factory.mktemp("images")
    for i in range(6):
        pixels = (255 * digits.test.images[i, 0]).round().byte().numpy()
        Image.fromarray(pixels).save(root / f"digit-{i}.png")
    return root


@pytest.fixture(scope="module")
def known(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The options that name the trained whole model of the tests, with its weights."""
    weights = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(trained.whole.module.state_dict(), weights)
    shape = ("--input", "1x16x16", "--classes", "10")
    return ("--model", "resnet_small", "--argument", "width=8", *shape, "--weights", str(weights))


@pytest.fixture(scope="module")
def expected(trained: Trained, images: Path) -> list[str]:
    """What the whole model says of the six images, in their order."""
    pixels = [np.asarray(Image.open(path)) for path in sorted(images.iterdir())]
    x = torch.from_numpy(np.stack(pixels)).float().div(255)[:, None]
    with torch.inference_mode():
        best = trained.whole.module(trained.whole.input.preprocess(x)).argmax(dim=1)
    return [trained.whole.class_names[i] for i in best.tolist()]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _call(*arguments: object) -> Outcome:
    """A command as a process of its own."""
    done = subprocess.run(
        [*DELTA, *(str(argument) for argument in arguments)], capture_output=True, text=True, timeout=120
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def serving() -> Iterator[Any]:
    """Starts `delta serve` for a bundle on a free port; returns its address."""
    started: list[subprocess.Popen[str]] = []

    def serve(bundle: Path) -> str:
        command = [*DELTA, "serve", "--bundle", str(bundle), "--listen", "127.0.0.1:0", "--threads", "1"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        started.append(process)
        assert process.stdout is not None
        return process.stdout.readline().partition(" listening on ")[2].split(" ", 1)[0].strip()

    yield serve
    for process in started:
        process.terminate()
        process.communicate(timeout=60)


# Real processes


def test_convert_serve_and_infer_as_three_commands(known, images, expected, serving, tmp_path):
    bundle, report = tmp_path / "bundle", tmp_path / "report.json"
    made = _call("convert", "cloud-only", *known, "--out", bundle)
    assert (made.code, made.err) == (0, "")
    assert f"delta serve --bundle {bundle}" in made.out
    assert "none: the cloud sees every record" in made.out

    address = serving(bundle)
    call = ("infer", images, "--bundle", bundle, "--cloud", address, "--json", report)
    done = _call(*call)
    assert (done.code, done.err) == (0, "")
    figures = json.loads(report.read_text())
    assert [row["label"] for row in figures["records"]] == expected
    assert all(row["used_cloud"] for row in figures["records"])
    assert figures["bytes_per_record"]["up"] > 4 * 16 * 16
    assert figures["privacy"] is None
    rows = [line for line in done.out.splitlines() if "digit-" in line]
    assert len(rows) == 6
    assert all("cloud" in row and "main" not in row and "private" not in row for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "report.json"]  # no key, no ledger


def test_private_only_needs_no_cloud(run, known, images, expected, tmp_path):
    bundle = tmp_path / "bundle"
    made = run("convert", "private-only", *known, "--out", bundle)
    assert (made.code, made.err) == (0, "")
    assert "delta serve" not in made.out
    assert f"delta infer IMAGES --bundle {bundle}" in made.out
    done = run("infer", images, "--bundle", bundle, "--json", tmp_path / "report.json")
    assert (done.code, done.err) == (0, "")
    figures = json.loads((tmp_path / "report.json").read_text())
    assert [row["label"] for row in figures["records"]] == expected
    assert figures["bytes_per_record"] == {"up": 0, "down": 0}
    assert done.out.count("private side") == 6
    assert "main" not in done.out
    fails(run("serve", "--bundle", bundle, "--listen", "127.0.0.1:0"), BundleError, "private side alone")


# A cloud that is missing


def test_without_a_cloud_a_method_that_needs_one_fails_in_one_line(run, known, images, closed_port, tmp_path):
    bundle = tmp_path / "bundle"
    assert run("convert", "cloud-only", *known, "--out", bundle).code == 0
    report = tmp_path / "report.json"
    call = ("infer", images, "--bundle", bundle, "--json", report)
    fails(run(*call), CloudUnavailableError, "no cloud", "HOST:PORT")
    address = f"127.0.0.1:{closed_port}"
    fails(run(*call, "--cloud", address), CloudUnavailableError, address)
    assert not report.exists()


def test_a_cloud_of_another_bundle_is_told(run, known, images, bundle_dirs, tmp_path):
    bundle = tmp_path / "bundle"
    assert run("convert", "cloud-only", *known, "--name", "tiny", "--out", bundle).code == 0
    with ServerProcess.start(bundle_dirs["none"], threads=1) as server:
        done = run("infer", images, "--bundle", bundle, "--cloud", server.address)
    assert done.code == 7
    assert done.err.startswith("error: ")
    assert len(done.err.strip().splitlines()) == 1


def test_a_method_that_falls_back_says_that_the_private_side_answered(
    run, known, images, expected, closed_port, tmp_path
):
    bundle = tmp_path / "bundle"
    assert run("convert", "three-leg-race", *known, "--out", bundle).code == 0
    call = ("infer", images, "--bundle", bundle)
    done = run(*call, "--json", tmp_path / "report.json")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("private side alone (no-cloud)") == 6
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["method"] == "three-leg-race"
    assert [row["label"] for row in figures["records"]] == expected
    address = f"127.0.0.1:{closed_port}"
    done = run(*call, "--cloud", address)
    assert done.code == 0
    assert done.err.startswith("warning: the private side answered alone (unreachable)")
    assert len(done.err.strip().splitlines()) == 1
    fails(run(*call, "--cloud", address, "--require-cloud"), CloudUnavailableError, address)


# Training and measuring


def test_it_trains_and_measures_and_says_how(run, tmp_path):
    bundle = tmp_path / "bundle"
    call = ("convert", "cloud-only", *SMALL, "--data", "generated:4x1x16x16:400", "--epochs", "4")
    call += ("--batch", "16", "--out", bundle)
    done = run(*call, "--json", "-")
    assert done.code == 0
    figures = json.loads(done.out)
    assert figures["trained"] == "by the method's own steps"
    assert figures["test_records"] > 0
    assert figures["accuracy"] > 50  # of four classes that differ plainly
    assert figures["answered_alone"] == 0
    assert figures["tee"] == "simulated"
    loaded = load_bundle(bundle)
    # The half that trained was in this process: the one that is served only answers. Its weights know the labels.
    assert "plan" not in loaded.manifest.settings
    assert loaded.manifest.labels == "disclosed"
    assert loaded.facts.figures == {"cloud-only": figures["accuracy"]}
    assert loaded.manifest.lineage["epochs"] == "4"


def test_the_same_seed_trains_the_same_weights_wherever_the_model_is(run, tmp_path):
    found = {}
    for method in ("private-only", "cloud-only"):
        call = (
            "convert",
            method,
            *SMALL,
            *DATA,
            "--epochs",
            "1",
            "--batch",
            "16",
            "--out",
            tmp_path / method,
        )
        assert run(*call).code == 0
        bundle = load_bundle(tmp_path / method)
        found[method] = bundle.private or bundle.cloud
    for name, tensor in found["private-only"].items():
        torch.testing.assert_close(found["cloud-only"][name], tensor, rtol=1e-5, atol=1e-6)


def test_settings_reach_the_method_and_its_training(run, tmp_path):
    call = ("convert", "main-only", *SMALL, *DATA, "--epochs", "1", "--out")
    few = run(*call, tmp_path / "few", "--set", "private_macs=60000", "--json", "-")
    many = run(*call, tmp_path / "many", "--set", "private_macs=200000", "--json", "-")
    assert json.loads(few.out)["private_macs"] <= 60_000 < json.loads(many.out)["private_macs"] <= 200_000
    still = run(
        *(*call, tmp_path / "still", "--set", "private_macs=60000"),
        *("--set", "plan.learning_rate=1.0e-12", "--set", "plan.weight_decay=0", "--json", "-"),
    )
    assert still.code == 0
    untrained = run(
        "convert", "main-only", *SMALL, *DATA, "--set", "private_macs=60000", "--out", tmp_path / "0"
    )
    assert untrained.code == 0
    assert "untrained" in untrained.err
    states = {name: load_bundle(tmp_path / name).private for name in ("few", "still", "0")}
    weight = next(name for name, tensor in states["0"].items() if tensor.dim() > 1)
    torch.testing.assert_close(states["still"][weight], states["0"][weight], rtol=0, atol=1e-8)
    assert not torch.equal(states["few"][weight], states["0"][weight])


@pytest.mark.parametrize(
    ("method", "arguments", "trained"),
    [
        ("cloud-only", (), "own steps"),
        ("dp-input", ("--set", "epsilon=8"), "own steps"),
        ("dp-sgd", ("--set", "epsilon=8"), "own steps"),
        ("he", ("--model", "he_cnn", "--test-limit", "4"), "as a whole"),
        ("he", ("--set", "mode=last-layer", "--test-limit", "4"), "as a whole"),
        ("main-only", (), "own steps"),
        ("private-only", (), "own steps"),
        ("slalom", ("--test-limit", "4"), "as a whole"),
        ("three-leg-race", ("--batch", "40"), "own steps"),
    ],
)
def test_every_method_is_trained_converted_and_measured(run, tmp_path, method, arguments, trained):
    bundle = tmp_path / "bundle"
    model = () if "--model" in arguments else SMALL
    done = run("convert", method, *model, *DATA, "--epochs", "1", *arguments, "--out", bundle, "--json", "-")
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    facts = method_class(method).facts
    assert trained in figures["trained"]
    assert (figures["trained"] == "by the method's own steps") == facts.trains
    assert 0 <= figures["accuracy"] <= 100
    assert (figures["accuracy_whole"] is None) == facts.trains
    assert figures["answered_alone"] == 0
    assert figures["rests_on"] == list(facts.rests_on)
    assert figures["claim"]
    assert load_bundle(bundle).manifest.method == method


def test_every_method_has_a_conversion_of_its_own_above():
    cases = test_every_method_is_trained_converted_and_measured.pytestmark[0].args[1]
    assert {case[0] for case in cases} == set(_ours()) - {"delta"}


def _ours() -> list[str]:
    return [n for n in method_names() if method_class(n).__module__.startswith("delta.methods.")]


def test_dp_input_spends_what_its_training_and_its_queries_release(run, images, serving, tmp_path):
    bundle, report = tmp_path / "bundle", tmp_path / "report.json"
    made = run(
        *("convert", "dp-input", *SMALL, "--data", "generated:10x1x16x16:100", "--set", "epsilon=8"),
        *("--epochs", "2", "--batch", "50", "--out", bundle, "--json", "-"),
    )
    assert made.code == 0, made.err
    assert json.loads(made.out)["ledger"] == str(tmp_path / "ledger.jsonl")
    shown = json.loads(run("ledger", "show", tmp_path / "ledger.jsonl", "--json", "-").out)
    assert shown["subjects"][0]["releases"] == 100  # two epochs over 100 stored releases

    call = ("infer", images, "--bundle", bundle, "--cloud", serving(bundle), "--json", report)
    first = run(*call, "--subject", "me")
    assert (first.code, first.err) == (0, "")
    told = json.loads(report.read_text())
    assert told["privacy"]["releases"] == 6
    assert told["privacy"]["epsilon"] > 8
    again = run(*call, "--subject", "me")
    assert json.loads(report.read_text())["privacy"] == told["privacy"]  # stored noise, nothing new
    assert json.loads(report.read_text())["records"] == told["records"]
    assert again.code == 0
    tight = run(*call, "--subject", "you", "--budget", "epsilon=1")
    fails(tight, BudgetExceededError, "budget")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bundle",
        "ledger.jsonl",
        "noise.key",
        "report.json",
    ]


# Faults


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("cloud-onyl",), UnknownMethodError, ["cloud-onyl", "did you mean cloud-only"]),
        (("delta",), MethodError, ["delta train --config"]),
        (("cloud-only", "--set", "colour=red"), ConfigError, ["colour", "it takes plan"]),
        (("cloud-only", "--set", "plan"), ConfigError, ["--set", "key=value"]),
        (("main-only", "--set", "private_macs=many"), ConfigError, ["private_macs", "integer"]),
        (("main-only", "--set", "private_macs=10", "--set", "seed=x"), ConfigError, ["seed", "integer"]),
        (("cloud-only", "--epochs", "1"), ConfigError, ["--data"]),
        (("slalom",), ConfigError, ["slalom", "data"]),
        (("dp-input",), PrivacyParameterError, ["epsilon"]),
        (("he",), ModelError, ["nn.Sequential", "last-layer"]),
        (("dp-sgd", *DATA, "--epochs", "1", "--set", "plan.steps=1"), ConfigError, ["plan", "it takes"]),
        (("cloud-only", "--device", "tpu"), ConfigError, ["tpu"]),
        (("cloud-only", "--name", "A name"), ConfigError, ["name"]),
        (("cloud-only", "--mean", "0.1,0.2"), ConfigError, ["--mean", "1"]),
        (("cloud-only", "--std", "0"), ConfigError, ["std above 0"]),
        (("cloud-only", "--input", "16"), ConfigError, ["--input", "3x32x32"]),
        (("cloud-only", "--argument", "width=x"), ModelError, ["width='x'"]),
        (("cloud-only", "--data", "nowhere"), DataError, ["nowhere"]),
        (("cloud-only", *DATA, "--epochs", "1", "--set", "plan.colour=1"), ConfigError, ["plan", "colour"]),
        (("cloud-only", *DATA, "--epochs", "1", "--set", "plan=fast"), ConfigError, ["plan"]),
        (("cloud-only", *DATA, "--input", "1x16x16"), ConfigError, ["10 classes", "has 4"]),
        (("cloud-only", "--data", "embedded"), ConfigError, ["--input 1x32x32"]),
    ],
)
def test_faults_of_the_options(run, tmp_path, arguments, error, words):
    shape = () if "--input" in arguments else ("--input", "1x16x16")
    call = ("convert", arguments[0], *SMALL, *shape, "--classes", "10", *arguments[1:])
    fails(run(*call, "--out", tmp_path / "bundle"), error, *words)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_model(run, known, tmp_path):
    other = ["width=16" if part == "width=8" else part for part in known]
    fails(run("convert", "cloud-only", *other, "--out", tmp_path / "b"), ModelError, "do not fit the model")
    absent = [*known[:-1], str(tmp_path / "none.safetensors")]
    fails(run("convert", "cloud-only", *absent, "--out", tmp_path / "b"), ModelError, "not there")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_none(run, tmp_path):
    call = ("convert", "cloud-only", "--out", tmp_path / "b", "--model")
    fails(run(*call, "resnet81", "--classes", "10"), ModelError, "resnet18")
    fails(run(*call, "resnet18"), ConfigError, "--classes")
    fails(run(*call, "no_such_module:build"), ModelError, "no_such_module")
    fails(run("convert", "cloud-only", "--out", tmp_path / "b"), ConfigError, "--model")


def test_nothing_of_the_owners_is_replaced_and_no_work_is_done_first(run, known, tmp_path):
    folder, report = tmp_path / "mine", tmp_path / "taken"
    folder.mkdir()
    report.mkdir()
    (folder / "thesis.txt").write_text("mine")
    fails(run("convert", "cloud-only", *known, "--out", folder), BundleError, "not a bundle", "thesis.txt")
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    fails(
        run("convert", "cloud-only", *known, "--out", tmp_path / "b", "--json", report), InputError, "taken"
    )
    assert not (tmp_path / "b").exists()


def test_an_earlier_bundle_is_replaced(run, known, tmp_path):
    for method in ("private-only", "cloud-only"):
        assert run("convert", method, *known, "--out", tmp_path / "b").code == 0
        assert load_bundle(tmp_path / "b").manifest.method == method


def test_a_bundle_of_an_unknown_method(run, known, images, tmp_path):
    assert run("convert", "private-only", *known, "--out", tmp_path / "b").code == 0
    other = Path(shutil.copytree(tmp_path / "b", tmp_path / "other"))
    manifest = load_bundle(other).manifest.resealed(method="telepathy")
    (other / "manifest.json").write_text(manifest.model_dump_json())
    fails(run("infer", images, "--bundle", other), UnknownMethodError, "telepathy")


# The list of methods


def test_the_list_of_methods(run):
    done = run("methods")
    assert (done.code, done.err) == (0, "")
    told = json.loads(run("methods", "--json", "-").out)["methods"]
    assert [row["name"] for row in told] == method_names()
    for row in told:
        facts = method_class(row["name"]).facts
        assert row["protects"] == list(facts.protects)
        assert row["rests_on"] == list(facts.rests_on)
        assert row["keeps"] == sorted(facts.keeps)
        assert row["trains"] == facts.trains
        assert row["name"] in done.out
    by_name = {row["name"]: row for row in told}
    assert by_name["main-only"]["settings"] == ["private_macs", "seed"]
    assert not by_name["delta"]["converts"]
