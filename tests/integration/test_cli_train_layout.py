"""Training and inference with a shuffled layout across a server process, as commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from delta_server.launch import ServerProcess
from PIL import Image

from delta.bundle.store import load_bundle
from delta.data.load import load_dataset
from delta.errors import ConfigError
from tests.commands import fails
from tests.tiny_runs import DATA, figures_of, stored_releases, write_config

LAYOUT = ("--set", "layout.patch=4", "--set", "bag={width: 2, layers: 1}")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A cloud that trains, and allows no code but Delta's own."""
    root = tmp_path_factory.mktemp("cloud")
    with ServerProcess.start(
        training=root / "store", threads=1, env={"OMP_NUM_THREADS": "1"}, log_path=root / "server.log"
    ) as process:
        yield process


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images such as the runs were trained on."""
    root = tmp_path_factory.mktemp("images")
    for i, image in enumerate(load_dataset(DATA).test.images[:3]):
        Image.fromarray((255 * image[0]).round().byte().numpy()).save(root / f"{i}.png")
    return root


def _infer(run, images: Path, bundle: Path, *more: object) -> list[dict[str, object]]:
    done = run("infer", images, "--bundle", bundle, "--json", "-", *more)
    assert (done.code, done.err) == (0, "")
    rows: list[dict[str, object]] = json.loads(done.out)["records"]
    return rows


def test_one_command_trains_a_bag_model_that_is_served_exported_and_attacked(run, cloud, images, tmp_path):
    config, out = write_config(tmp_path / "run.yaml", cloud_augment="shift+flip"), tmp_path / "out"
    done = run("train", "--config", config, "--out", out, "--cloud", cloud.address, "--json", "-", *LAYOUT)
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert figures["layout"] == "shuffled 4×4, mirrored"
    assert 32 < figures["bytes_per_record"]["up"] < 32 + 12  # 16×16 bits, as where the layout is kept
    bundle = load_bundle(out / "bundle")
    assert bundle.manifest.architecture_in_cloud.arguments == {
        "classes": 4,
        "channels": 1,
        "patch": 4,
        "width": 2,
        "layers": 1,
    }
    assert figures["cloud_macs"] == bundle.facts.cloud_macs > 0
    exported = run("export", "--bundle", out / "bundle", "--out", tmp_path / "part")
    assert exported.code == 0, exported.err
    with ServerProcess.start(tmp_path / "part", threads=1) as server:
        rows = _infer(run, images, out / "bundle", "--cloud", server.address)
        assert [row["used_cloud"] for row in rows] == [True] * 3
        assert _infer(run, images, out / "bundle", "--cloud", server.address) == rows
    assert [row["used_cloud"] for row in _infer(run, images, out / "bundle")] == [False] * 3
    attacked = run(
        *("attack", out / "bundle", "--data", DATA, "--attacks", "matching,labels,decoder,jigsaw"),
        *("--taps", "release", "--epochs", 1, "--width", 4, "--candidates", 40, "--victims", 20),
        *("--json", tmp_path / "attack.json"),
    )
    assert attacked.code == 0, attacked.err
    assert "release, shuffled 4×4" in attacked.out
    assert "jigsaw" in attacked.out
    found = figures_of(tmp_path / "attack.json")
    assert [row["attack"] for row in found["taps"]] == ["decoder", "jigsaw"]


def test_interactive_training_reads_bags_and_its_model_may_be_served(run, cloud, images, tmp_path):
    config, out = write_config(tmp_path / "run.yaml", promote="always", name="bags"), tmp_path / "out"
    call = ("train", "--config", config, "--out", out, "--cloud", cloud.address, "--json", "-")
    done = run(
        *call, *LAYOUT, "--set", "mode=interactive", "--set", "noise={epsilon: 8}", "--set", "budget={mu: 40}"
    )
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert (figures["mode"], figures["promoted"], figures["bad_answers"]) == ("interactive", True, 0)
    assert figures["privacy"]["epsilon"] == pytest.approx(8)  # and no better
    rows = _infer(run, images, out / "bundle", "--cloud", cloud.address, "--budget", "mu=40")
    assert [row["used_cloud"] for row in rows] == [True] * 3


def test_a_second_start_sends_the_stored_bags(run, cloud, tmp_path):
    config, out = write_config(tmp_path / "run.yaml", name="again"), tmp_path / "out"
    call = ("train", "--config", config, "--out", out, "--cloud", cloud.address, *LAYOUT)
    assert run(*call).code == 0
    sent = stored_releases(out)
    (out / "summary.json").unlink()
    assert run(*call).code == 0
    assert stored_releases(out) == sent != {}


def test_patches_that_do_not_divide_are_refused_before_any_work(run, tmp_path):
    config = write_config(tmp_path / "run.yaml")
    done = run("train", "--config", config, "--out", tmp_path / "out", "--set", "layout.patch=5")
    fails(done, ConfigError, "patch of 5 does not cut the message's 16×16", "take 2 or 4")
    done = run("plan", "--model", "resnet_small", "--input", "1x16x16", "--classes", 4, "--layout-patch", 5)
    fails(done, ConfigError, "take 2 or 4")
    done = run("plan", "--model", "resnet_small", "--input", "1x16x16", "--classes", 4, "--layout-patch", 4)
    assert "layout shuffled 4×4" in done.out


@pytest.mark.slow
def test_a_sweep_varies_patches_and_every_shuffled_point_meets_the_jigsaw(run, tmp_path):
    write_config(tmp_path / "run.yaml", bag={"width": 2, "layers": 1})
    attack = {"epochs": 1, "width": 4, "classifier_epochs": 1, "candidates": 40, "victims": 20}
    sweep = {
        "base": "run.yaml",
        "grid": {"layout.patch": [None, 4]},
        "attack": attack,
        "timing": {"rounds": 3},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    done = run("frontier", tmp_path / "sweep.yaml", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    points = figures_of(tmp_path / "out" / "frontier.json")["points"]
    assert [point["settings"]["layout"] for point in points] == ["kept", "shuffled 4×4, mirrored"]
    assert "point 2, seed 0: jigsaw, release, 1 look: done" in done.err
    assert "point 1, seed 0: jigsaw" not in done.err
