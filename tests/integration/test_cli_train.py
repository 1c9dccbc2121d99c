"""`delta train` as a command: what it leaves, what of it can be served, and what goes on after a refusal."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from delta_client import GrpcTrainingCloud, TenantToken
from delta_server.app import ServerThread
from delta_server.config import ServerConfig
from delta_server.launch import ServerProcess
from PIL import Image

from delta.bundle.store import load_bundle
from delta.data.load import load_dataset
from delta.errors import (
    BudgetExceededError,
    CloudAnswerError,
    CloudDeniedError,
    CloudMismatchError,
    ConfigError,
    DeltaError,
    spec_of,
)
from delta.privacy.disk_ledger import DiskLedger
from delta.privacy.events import RandomizedResponseLabel
from delta.privacy.ledger_file import read_ledger
from tests.commands import Outcome, fails
from tests.own_target import make_home, write_own_config
from tests.scripted_training import GARBAGE, Cloud
from tests.tiny_runs import DATA, RECORDS, entered, figures_of, outcome_of, write_config
from tests.training_jobs import dataset_spec, job_spec

HELD_OUT, TEST = RECORDS // 10, RECORDS // 5
ACCURACIES = {"private_only", "main_alone", "delta", "random_bits", "noiseless_bits", "main_only"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the cloud keeps."""
    return tmp_path_factory.mktemp("cloud") / "store"


@pytest.fixture(scope="module")
def cloud(store: Path) -> Iterator[ServerProcess]:
    """A cloud that trains for everybody."""
    with ServerProcess.start(
        training=store, threads=1, env={"OMP_NUM_THREADS": "1"}, log_path=store.parent / "server.log"
    ) as process:
        yield process


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four images such as the runs were trained on."""
    root = tmp_path_factory.mktemp("images")
    for i, image in enumerate(load_dataset(DATA).test.images[:4]):
        Image.fromarray((255 * image[0]).round().byte().numpy()).save(root / f"{i}.png")
    return root


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
    assert figures["releases"] == {"total": RECORDS, "held_out": HELD_OUT}
    assert figures["ledger"] == {"new_entries": RECORDS}
    # A release is 16×16 bits, and its label and mark are bits, too; specifications and handshake come on top.
    assert 32 < figures["bytes_per_record"]["up"] < 32 + 12
    assert figures["privacy"]["claim"] == "none"
    assert figures["privacy"]["label"] == "empirical obfuscation"
    assert figures["budget"] == "unlimited"
    assert list(figures["stage_seconds"]) == [
        *("private", "release", "upload", "cloud", "controls", "main_only")
    ]
    assert sum(figures["stage_seconds"].values()) < figures["seconds"]
    assert (figures["kind"], figures["tee"], figures["promoted"]) == ("train", "simulated", False)
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
    (labels,) = (text for text in privacy["conditions"] if text.startswith("labels: "))
    assert labels.startswith("labels: randomized response, epsilon 2 each")
    assert "jointly" in labels
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
    assert figures["ledger"]["new_entries"] == 0
    assert figures["bytes_per_record"]["up"] < 32  # the cloud has the releases
    assert len(entered(out)) == RECORDS + 4  # and the images that were asked about


@pytest.mark.slow
def test_the_configuration_that_ships_with_the_embedded_digits(run, tmp_path):
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    config = Path(__file__).parents[2] / "configs" / "embedded.yaml"
    done = run("train", "--config", config, "--limit", 1000, "--out", out, "--json", figures)
    assert done.code == 0, done.err
    found = figures_of(figures)
    assert found["bytes_per_record"]["up"] <= 141
    assert min(found["accuracy"].values()) > 40  # four times the prior
    assert found["leakage"]["cloud_label_accuracy"] > 3 * found["leakage"]["label_prior"]
    assert found["seconds"] < 900


@pytest.mark.slow
def test_the_configuration_of_large_images_runs_on_generated_ones(run, tmp_path):
    """3x224x224 in bfloat16 through every stage; so few images say nothing about accuracy."""
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    config = Path(__file__).parents[2] / "configs" / "imagenet-resnet18.yaml"
    changes = (
        "data.source=generated:10x3x224x224:100",
        *(f"{fit}_fit.epochs=1" for fit in ("main", "cloud")),
    )
    call = ["train", "--config", config, "--out", out, "--json", figures, "--set", "whole.epochs=1"]
    done = run(*call, *(part for change in changes for part in ("--set", change)))
    assert done.code == 0, done.err
    manifest = load_bundle(out / "bundle").manifest
    assert manifest.input.shape == (3, 224, 224)
    assert manifest.release is not None
    assert manifest.release.message.shape == (1, 56, 56)
    assert figures_of(figures)["private_macs"] <= 300_000_000


# What goes on


def test_a_budget_too_small_sends_nothing_and_a_larger_one_goes_on(run, cloud, store, tmp_path):
    config, out = write_config(tmp_path / "run.yaml", noise={"epsilon": 8}), tmp_path / "out"
    call = ("train", "--config", config, "--out", out, "--cloud", cloud.address)
    done = run(*call, "--set", "budget={mu: 23}")
    _refuses(done, BudgetExceededError, "too small for the data set", "nothing was sent", "without a subject")
    assert entered(out) == []
    token = TenantToken.load(out / "tenant.token").for_cloud(cloud.address)
    tenant = store / "tenants" / hashlib.sha256(token).hexdigest()
    assert not tenant.exists()
    assert "whole model" not in done.err  # it shows before any training
    done = run(*call, "--set", "budget={mu: 24}")
    assert done.code == 0, done.err
    assert "budget" in done.err.splitlines()[0]  # what was loosened is said
    assert tenant.exists()
    assert len(entered(out)) == RECORDS


def test_what_another_cloud_is_told_opens_nothing_here(run, cloud, tmp_path):
    """The same run folder, asked of another cloud: its operator may know names, and gets nowhere with them."""
    config, out, dataset = write_config(tmp_path / "run.yaml"), tmp_path / "out", "ab" * 16
    out.mkdir()
    token = TenantToken.at(out / "tenant.token").for_cloud(cloud.address)
    with GrpcTrainingCloud(cloud.address, token) as ours:
        ours.create(dataset, dataset_spec())
        with Cloud(StartTraining=lambda raw, context: GARBAGE) as other:
            done = run("train", "--config", config, "--out", out, "--cloud", other.address)
            fails(done, CloudAnswerError, "no message of the protocol")
            (told,) = other.tokens
        assert told not in (token, (out / "tenant.token").read_bytes())
        with GrpcTrainingCloud(cloud.address, told) as thief:
            thief.delete(dataset)
            with pytest.raises(CloudDeniedError):
                thief.start(dataset, "cd" * 16, job_spec())
        with pytest.raises(CloudMismatchError, match="another specification"):
            ours.create(dataset, dataset_spec(records=1))  # it is there
        ours.delete(dataset)


def test_a_file_of_settings_never_loosens_a_ledger_that_runs_share(run, cloud, tmp_path):
    config, shared = write_config(tmp_path / "run.yaml", noise={"epsilon": 8}), tmp_path / "shared.jsonl"
    call = ("train", "--config", config, "--cloud", cloud.address, "--ledger", shared)
    with DiskLedger(shared, budget=2.0):
        pass
    done = run(*call, "--out", tmp_path / "out", "--set", "budget=unlimited")
    assert done.code == spec_of(BudgetExceededError).exit_code
    assert "stricter" in done.err
    assert read_ledger(shared).budget == 2.0
    assert run(*call, "--out", tmp_path / "out", "--budget", "mu=24").code == 0
    assert read_ledger(shared).budget == 24.0


def test_runs_that_share_their_checkpoints_share_their_fits(run, cloud, tmp_path, monkeypatch):
    """Stage 1 does not depend on the noise. A budget too small for further views ends each run right after it."""
    config, shared = write_config(tmp_path / "run.yaml"), tmp_path / "shared"
    call = ("train", "--config", config, "--cloud", cloud.address, "--checkpoints", shared)
    views = ("--set", "views=2", "--set", "augment=shift")
    for epsilon, mu, trains in ((8, 28, True), (4, 15, False)):
        noise = ("--set", f"noise={{epsilon: {epsilon}}}", "--set", f"budget={{mu: {mu}}}")
        done = run(*call, *noise, *views, "--out", tmp_path / f"out-{epsilon}")
        _refuses(done, BudgetExceededError, "nothing was sent")
        assert ("whole model" in done.err, "main model" in done.err) == (trains, trains)
        assert not (tmp_path / f"out-{epsilon}" / "checkpoints").exists()
    monkeypatch.setenv("DELTA_CHECKPOINT_STEPS", "often")
    fails(run(*call, "--out", tmp_path / "out"), ConfigError, "DELTA_CHECKPOINT_STEPS", "often", "1 or more")


# A user's own


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's model, its weights, and data."""
    return make_home(tmp_path_factory.mktemp("home"))


def test_a_users_own_model_is_the_teacher_as_it_came_and_its_bundle_is_served(
    run, home, tmp_path, monkeypatch
):
    """A process of its own, in the folder that holds model and data."""
    config, out = write_own_config(tmp_path / "run.yaml", home, noise={"epsilon": 8}), tmp_path / "out"
    command = [sys.executable, "-m", "delta.cli", "train", "--config", str(config), "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DELTA_TRACEBACK": "1"}
    done = subprocess.run(
        [*command, "--json", "-"], cwd=home, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert "whole model" not in done.stderr
    # Every person has a record or two among the 80 for training, each of which is released once.
    assert figures["privacy"]["person"].startswith("person level: at most ")
    assert "over 2 releases and 0 labels" in figures["privacy"]["person"]
    assert {subject for subject, _ in entered(out)} == {f"person-{i}" for i in range(50)}
    bundle = load_bundle(out / "bundle")
    assert bundle.manifest.architecture.target == "mymodel:Net"
    assert bundle.manifest.class_names == ("even", "odd")
    for i in range(4):
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / f"{i}.png")
    monkeypatch.chdir(home)
    with ServerThread(ServerConfig(bundles=(out / "bundle",), allow=frozenset({"mymodel:Net"}))) as server:
        _answers(run, tmp_path, out / "bundle", server.address, "--allow", "mymodel:Net")
