"""`delta plan`, `delta check`, and the faults of `delta demo`, as commands."""

import json
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from delta.errors import ConfigError, DataError, InputError, ModelError
from delta.models import resnet_small
from tests.commands import fails

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))

class Skip(Net):
    def forward(self, x):
        return self.head((self.body(self.stem(x)) + x[:, :, ::2, ::2]).mean((2, 3)))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "mine_to_split.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    yield "mine_to_split"
    sys.modules.pop("mine_to_split", None)


def test_the_plan_of_resnet18(run, tmp_path):
    done = run(
        "plan", "--model", "resnet18", "--classes", 100, "--input", "3x32x32", "--rank", 8, "--dct", "16:8",
        "--json", tmp_path / "plan.json",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert set(figures["macs"]) == {"backbone", "svd", "dct", "decomposition", "main", "cloud", "whole"}
    assert all(isinstance(macs, int) for macs in figures["macs"].values())
    assert (figures["macs"]["svd"], figures["macs"]["dct"]) == (524_288, 262_144)
    assert figures["bytes_per_record"] == {"up": 128, "down": 400}
    assert figures["peak_private_mib"] > 0
    for words in ("547.4 M", "SVD 524,288", "DCT 262,144", "48.3 M"):
        assert words in done.out


def test_the_ceiling_is_printed_before_anything_is_trained(run):
    done = run("plan", "--model", "resnet_small", "--classes", 10, "--epsilon", 8)
    assert done.code == 0
    assert "0.5 bits a release" in done.out


def test_cryptographic_inference_is_modelled_beside_the_plan(run, own, tmp_path):
    call = (
        "plan",
        "--model",
        f"{own}:Net",
        "--at",
        "body",
        "--input",
        "1x16x16",
        "--rank",
        4,
        "--main",
        "light",
    )
    done = run(*call, "--mpc", "--json", tmp_path / "plan.json")
    assert (done.code, done.err) == (0, "")
    relus = 8 * 16 * 16 + 8 * 8 * 8
    for words in ("private MACs", "modelled, nothing was run", f"{relus:,} ReLUs", "lookup tables (Tabula)"):
        assert words in done.out
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["mpc"]["modelled"] is True
    assert figures["mpc"]["counted"]["relus"] == relus
    assert figures["mpc"]["counted"]["macs"] == figures["macs"]["whole"]
    assert {cost["name"] for cost in figures["mpc"]["protocols"]} == {
        "garbled_circuits",
        "circa",
        "lookup_tables",
    }

    fails(run("plan", "--classes", 10, "--sweep", "--mpc"), ConfigError, "--sweep")
    run(*call, "--json", tmp_path / "plain.json")
    assert "mpc" not in json.loads((tmp_path / "plain.json").read_text())


def test_a_sweep_ranks_split_points_of_ones_own_model(run, own, tmp_path):
    done = run(
        "plan", "--model", f"{own}:Net", "--input", "1x16x16", "--sweep", "--rank", 4, "--json", "sweep.json"
    )
    assert (done.code, done.err) == (0, "")
    rows = json.loads((tmp_path / "sweep.json").read_text())["rows"]
    assert rows == sorted(rows, key=lambda row: (row["private_macs"], row["bytes_up"], -row["energy_kept"]))
    assert {"at", "private_macs", "bytes_up", "energy_kept"} <= set(rows[0])


def test_weights_are_loaded_from_safetensors_and_nothing_else(run, own, tmp_path):
    call = ("plan", "--model", "resnet_small", "--classes", 10, "--input", "1x32x32", "--weights")
    save_file(resnet_small(classes=10, in_channels=1).state_dict(), tmp_path / "good.safetensors")
    save_file({"w": torch.zeros(1)}, tmp_path / "other.safetensors")
    torch.save({"w": torch.zeros(1)}, tmp_path / "model.pt")
    assert run(*call, tmp_path / "good.safetensors").code == 0
    fails(run(*call, tmp_path / "other.safetensors"), ModelError, "do not fit", "missing")
    fails(run(*call, tmp_path / "model.pt"), ModelError, "not a safetensors file")
    fails(run(*call, tmp_path / "absent"), ModelError, "not there")


def test_check_names_an_obstacle_and_its_mend(run, own, tmp_path):
    good = run("check", f"{own}:Net", "--input", "1x16x16", "--at", "body")
    assert good.code == 0
    assert "no obstacles" in good.out
    bad = run("check", f"{own}:Skip", "--input", "1x16x16", "--at", "body", "--json", "check.json")
    assert bad.code == 4
    assert "mend:" in bad.out
    obstacles = json.loads((tmp_path / "check.json").read_text())["obstacles"]
    assert any("body" in obstacle["where"] for obstacle in obstacles)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--classes", 10, "--dct", "15:8"], ConfigError, ["15", "16"]),
        (["--classes", 10, "--dct", "8"], ConfigError, ["16:8"]),
        (["--classes", 10, "--rank", 65], ConfigError, ["64"]),
        (["--classes", 10, "--input", "32x32"], ConfigError, ["3x32x32"]),
        (["--classes", 10, "--at", "layer9"], ModelError, ["layer9", "layer"]),
        (["--classes", 10, "--epsilon", -1], ConfigError, ["epsilon"]),
        (["--classes", 10, "--main", "authors", "--main-macs", 5], ConfigError, ["light"]),
        (["--classes", 10, "--sweep", "--at", "layer1"], ConfigError, ["--at"]),
        (["--classes", 10, "--message", "projection"], ConfigError, ["k"]),
        ([], ConfigError, ["--classes"]),
        (["--model", "resnet"], ModelError, ["resnet18"]),
        (["--model", "no_such_module_here:build"], ModelError, ["no_such_module_here"]),
        (["--model", "json:loads"], ModelError, ["json:loads"]),
    ],
)
def test_wrong_plans(run, arguments, error, words):
    fails(run("plan", *arguments), error, *words)


def _folder(root, classes=("cat", "dog"), count=60):
    for part in ("train", "test"):
        for shade, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (32, 32), (40 * shade, i, 90)).save(root / part / name / f"{i}.png")
    return root


def test_wrong_data_of_the_demo(run, tmp_path):
    call = ("demo", "--out", tmp_path / "out", "--data")
    fails(run(*call, tmp_path / "absent"), DataError, "absent")
    (tmp_path / "empty").mkdir()
    fails(run(*call, tmp_path / "empty"), DataError, "train/<class>/")
    broken = _folder(tmp_path / "broken")
    (broken / "train" / "cat" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    fails(run(*call, broken), InputError, "3.png")
    lacking = _folder(tmp_path / "lacking")
    for path in (lacking / "test" / "dog").iterdir():
        path.unlink()
    fails(run(*call, lacking), DataError, "dog")
    fails(run(*call, "mnist", "--download"), DataError, "cifar10:FOLDER")
    fails(run(*call, "embedded", "--limit", 5), ConfigError, "--limit")
    assert not (tmp_path / "out").exists()
