"""A learned message through every command: plan, train, attack, export, serve, infer and frontier."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from delta_server.launch import ServerProcess
from PIL import Image

from delta.bundle.store import load_bundle
from delta.data.load import load_dataset
from delta.errors import ConfigError
from delta.training.run_config import RunConfig
from tests.commands import Outcome, fails
from tests.tiny_runs import DATA, RECORDS, entered, figures_of, write_config

Run = Callable[..., Outcome]
MESSAGE = {"map": "learned", "k": 2, "stride": 2, "epochs": 1, "width": 4}
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three images such as the run was trained on."""
    (tmp_path / "images").mkdir()
    for i, image in enumerate(load_dataset(DATA).test.images[:3]):
        Image.fromarray((255 * image[0]).round().byte().numpy()).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def test_a_run_says_what_it_learned_and_all_that_follows_takes_the_bundle(
    run: Run, images: Path, tmp_path: Path
) -> None:
    out, attacked = tmp_path / "out", tmp_path / "attack.json"
    config = write_config(tmp_path / "run.yaml", message=MESSAGE, noise={"epsilon": 8})
    changes = ("--set", "budget=unlimited", "--set", "message.k=3", "--set", "message.adversary=2")
    done = run("train", "--config", config, *changes, "--out", out, "--json", tmp_path / "run.json")
    assert done.code == 0, done.err
    assert "message map: done in " in done.err
    text = " ".join(done.out.split())
    assert "for people with no record in the private fit of message map" in text
    assert "message map fitted on private data: for people with a record in that fit, no claim" in text
    assert (
        "message map: learned, private: fitted on the training records against a decoder of weight 2" in text
    )
    figures = figures_of(tmp_path / "run.json")
    assert {**figures["message"], "provenance": figures["message"]["provenance"]["kind"]} == {
        "map": "learned",
        "shape": [3, 8, 8],
        "stride": 2,
        "provenance": "private",
    }
    assert "decoder of weight 2" in figures["message"]["provenance"]["note"]
    assert len(entered(out)) == RECORDS
    release = load_bundle(out / "bundle").manifest.release
    assert release is not None
    assert (release.payload_bytes, release.message_stride) == (24, 2)

    done = run(
        *("attack", out / "bundle", "--data", DATA, "--attacks", "matching,labels,decoder", "--epochs", 1),
        *("--width", 4, "--victims", 20, "--auxiliary", 64, "--candidates", 40, "--taps", "release"),
        *("--json", attacked),
    )
    assert done.code == 0, done.err
    assert {row["tap"] for row in figures_of(attacked)["taps"]} == {"release"}

    assert run("export", "--bundle", out / "bundle", "--out", tmp_path / "cloud").code == 0
    held = {path.name for path in (tmp_path / "cloud").iterdir()}
    assert "private.safetensors" not in held
    with ServerProcess.start(tmp_path / "cloud", threads=1) as server:
        done = run("infer", images, "--bundle", out / "bundle", "--cloud", server.address, "--json", "-")
    assert done.code == 0, done.err
    assert [row["used_cloud"] for row in json.loads(done.out)["records"]] == [True] * 3


def test_a_frontier_varies_its_settings(run: Run, tmp_path: Path) -> None:
    write_config(tmp_path / "run.yaml", message=MESSAGE)
    sweep = {
        "base": "run.yaml",
        "grid": {"message.k": [1, 2], "message.stride": [2], "message.adversary": [0.0]},
        "points": [{"message.adversary": 1.0}],
        "attack": {"epochs": 1, "width": 4, "classifier_epochs": 1, "candidates": 40, "victims": 20},
        "timing": {"batch": 4, "rounds": 3, "warmup": 1},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    done = run("frontier", tmp_path / "sweep.yaml", "--out", tmp_path / "swept")
    assert done.code == 0, done.err
    points = figures_of(tmp_path / "swept" / "frontier.json")["points"]
    found = [(point["settings"]["message"], point["settings"]["k"]) for point in points]
    assert found == [("learned", 1), ("learned", 2), ("learned", 2)]
    assert [point["settings"]["adversary"] for point in points] == [0.0, 0.0, 1.0]
    assert {point["settings"]["stride"] for point in points} == {2}


def test_a_plan_counts_it(run: Run, tmp_path: Path) -> None:
    base = ("plan", "--model", "resnet18", "--classes", 10, "--basis", "pca")
    done = run(
        *base, "--message", "learned", "--channels", 4, "--message-stride", 2, "--json", tmp_path / "p"
    )
    assert (done.code, done.err) == (0, "")
    assert "message learned 4x16x16 (stride 2)" in done.out
    figures = figures_of(tmp_path / "p")
    assert figures["shapes"]["message"] == [4, 16, 16]
    assert figures["bytes_per_record"]["up"] == 128
    assert figures["settings"]["message_stride"] == 2
    # Uᵀφ and its analysis, D_hᵀ p D_w, Wφ and its correction: r = 8 of c = 64 channels, 32² cropped to 16².
    spatial = 8 * (16 * 32 * 32 + 16 * 32 * 16 + 16 * 16 * 32 + 32 * 16 * 32)
    assert figures["macs"]["decomposition"] == 8 * 64 * 32**2 + spatial + 4 * (64 + 8) * 32**2
    fails(
        run(*base, "--message", "learned", "--channels", 4, "--message-stride", 3),
        ConfigError,
        "nearest is 2",
    )
    fails(run(*base, "--message-stride", 2), ConfigError, "'channel-mean' is fixed")


def test_the_configuration_that_ships_learns_as_many_bits_as_the_mean_has() -> None:
    learned = RunConfig.read(CONFIGS / "embedded-learned.yaml").message
    assert learned is not None
    assert not isinstance(learned, str)
    assert learned.k == learned.stride**2
    assert np.isfinite(learned.adversary)
