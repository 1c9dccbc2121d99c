from __future__ import annotations

import json

import pytest
import torch

from delta.errors import ConfigError, InputError, ModelError, PrivacyParameterError, SplitError
from delta.models.plan import plan
from delta.models.plan_table import render_plan, render_sweep
from delta.models.splitting import split, split_points
from delta.models.sweep import sweep
from tests.unit import models_zoo as zoo

X = torch.zeros(1, 3, 8, 8)


PAPER = {"basis": "svd", "main_layout": "authors"}


@pytest.fixture(scope="module")
def resnet18_plan():
    return plan("resnet18", classes=100, input=(3, 32, 32), rank=8, block=16, keep=8, epsilon=8, **PAPER)


def test_the_json_holds_the_declared_figures(resnet18_plan) -> None:
    value = json.loads(json.dumps(resnet18_plan.to_json()))
    assert list(value["macs"]) == ["backbone", "svd", "dct", "decomposition", "main", "cloud", "whole"]
    assert all(type(macs) is int for macs in value["macs"].values())
    assert value["macs"]["svd"] == 524_288
    assert value["macs"]["dct"] == 262_144
    assert value["macs"]["backbone"] == 1_769_472
    assert value["macs"]["whole"] == 555_468_800
    assert value["bytes_per_record"] == {"up": 128, "down": 400}
    assert value["params"]["cloud"] == value["params"]["adapter"] + value["params"]["body"]
    assert value["params"]["backbone"] + value["params"]["body"] == value["params"]["whole"]
    assert value["peak_private_mib"] > 64 * 32 * 32 * 4 / 2**20
    assert value["model"]["target"] == "delta.models:resnet18"
    assert value["settings"]["rank"] == 8
    assert value["privacy"]["ceiling_bits"] == pytest.approx(0.50, abs=0.005)
    assert value["privacy"]["mu"] == pytest.approx(1.67, abs=0.005)


def test_the_cloud_is_body_and_adapter_and_the_rest_is_accounted_for(resnet18_plan) -> None:
    macs = resnet18_plan.macs
    assert macs["cloud"] == macs["whole"] - macs["backbone"] + 9 * 64 * 32 * 32
    bare = macs["cloud"] - 9 * 64 * 32 * 32 - 3 * 64 * 128 * 256 - 512 * 100
    assert round(bare / 1e6, 1) == 547.4
    note = next(n for n in resnet18_plan.notes if n.startswith("macs.cloud"))
    for part in (
        "554.3 M",
        "downsample convolutions 6.29 M",
        "classifier 0.05 M",
        "adapter 0.59 M",
        "547.4 M",
    ):
        assert part in note


def test_the_main_model_differs_from_the_slides_and_a_note_says_how(resnet18_plan) -> None:
    note = next(n for n in resnet18_plan.notes if "48.3 M" in n)
    assert "make 87.5 M at rank 8" in note
    assert "is 6 with 51.3 M" in note
    other = plan("resnet18", classes=100, input=(3, 32, 32), rank=4, block=16, keep=8, **PAPER)
    assert any("make 24.3 M at rank 4" in n for n in other.notes)


def test_notes_follow_the_numbers() -> None:
    narrow = plan("resnet18", classes=10, input=(3, 32, 32), arguments={"width": 8}, rank=4)
    text = " ".join(narrow.notes)
    assert "differs from the slides'" in text
    assert "547.4 M" not in text
    own = plan(zoo.Plain(), at="second", input=(3, 8, 8), rank=2, **PAPER)
    assert not any("slides'" in note and "ResNet" in note for note in own.notes)
    assert any("no less than the whole model" in note for note in own.notes)


def test_the_table_shows_the_figures(resnet18_plan) -> None:
    text = render_plan(resnet18_plan)
    assert str(resnet18_plan) == text
    for figure in ("524,288", "262,144", "555,468,800", "128 up, 400 down", "0.5 bits", "DCT 16:8"):
        assert figure in text
    assert max(map(len, text.split("\nnote:")[0].splitlines())) < 120


@pytest.mark.parametrize("basis", ["svd", "pca"])
@pytest.mark.parametrize(
    ("offload", "message", "k", "shape", "up"),
    [
        ("residual", None, None, (1, 8, 8), 8),
        ("residual", "projection", 3, (3, 8, 8), 24),
        ("residual", "all-channels", None, (8, 8, 8), 64),
        ("principal", None, None, (2, 4, 4), 4),
        ("principal", "channel-mean", None, (1, 4, 4), 2),
    ],
)
def test_every_stream_and_message(basis, offload, message, k, shape, up) -> None:
    parts = split(zoo.Plain(), at="second", example=X)
    cost = parts.plan(rank=2, block=4, keep=2, basis=basis, offload=offload, message=message, k=k)
    assert cost.shapes["message"] == shape
    assert cost.bytes_per_record == {"up": up, "down": 20}
    assert cost.shapes["main_input"] == ((8 if basis == "svd" else 2), 4, 4)
    assert cost.privacy is None
    json.dumps(cost.to_json())


def test_defaults_fit_any_model() -> None:
    cost = split(zoo.sequential(), at="2", example=X).plan()
    assert (cost.settings.rank, cost.settings.block, cost.settings.keep) == (8, 4, 2)
    light = split(zoo.Plain(), at="second", example=X).plan(main_layout="light", main_max_macs=80_000)
    assert light.macs["main"] <= 80_000
    assert light.settings.main["layout"] == "light"


def test_large_inputs_get_the_imagenet_stem() -> None:
    cost = plan("resnet_small", classes=5, input=(3, 128, 128), arguments={"width": 4}, rank=2)
    assert cost.model["ir_shape"] == [4, 32, 32]


def test_a_plan_leaves_the_model_alone() -> None:
    model = zoo.Plain().train().double()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ModelError):  # the adapter is float32: a float64 body cannot read it
        plan(model, at="second", input=(3, 8, 8), rank=2)
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"input": None}, ConfigError, "--input 3x32x32"),
        ({"input": (3, 8)}, ConfigError, "--input 3x32x32"),
        ({"classes": None}, ConfigError, "--classes"),
        ({"rank": 65}, ConfigError, "rank 65"),
        ({"block": 3}, ConfigError, "nearest valid"),
        ({"block": 4, "keep": 5}, ConfigError, "cannot keep 5"),
        ({"message": "projection"}, ConfigError, "projection"),
        ({"at": "layer7"}, SplitError, "layer4, layer3"),
        ({"epsilon": -1}, PrivacyParameterError, "epsilon"),
        ({"main_layout": "light", "main_max_macs": 5}, ModelError, "smallest takes"),
    ],
)
def test_bad_settings_are_refused(arguments, error, words: str) -> None:
    with pytest.raises(error, match=words):
        plan(**{"parts_or_model": "resnet18", "classes": 5, "input": (3, 8, 8), **arguments})


def test_classes_that_disagree_are_refused() -> None:
    with pytest.raises(ModelError, match="5 classes, not 6"):
        plan(zoo.Plain(), at="second", input=(3, 8, 8), classes=6)


def test_a_sweep_ranks_all_split_points() -> None:
    model = zoo.LongSkip()
    rows = sweep(model, X, rank=4, block=8, keep=4, main_layout="light", main_max_macs=80_000)
    assert {row.at for row in rows} == {p.at for p in split_points(model, X)}
    assert [r.private_macs for r in rows] == sorted(r.private_macs for r in rows)
    by_name = {row.at: row for row in rows}
    assert by_name["head"].backbone_macs > by_name["second"].backbone_macs > by_name["block"].backbone_macs
    assert all(0 < row.energy_kept <= 1 for row in rows)
    assert (by_name["head"].block, by_name["head"].keep) == (4, 2)
    assert by_name["block"].bytes_up == 8
    text = render_sweep(rows)
    assert all(row.at in text for row in rows)
    json.dumps([row.to_json() for row in rows])


def test_a_sweep_measures_on_the_images_given() -> None:
    model = zoo.Plain()
    flat = torch.ones(2, 3, 8, 8)
    rows = sweep(model, X, images=flat, rank=8, block=8, keep=8, main_max_macs=200_000, basis="pca")
    assert {row.at: row for row in rows}["second"].energy_kept == pytest.approx(1, abs=1e-5)
    with pytest.raises(InputError, match="shape of the example"):
        sweep(model, X, images=torch.ones(2, 3, 8, 9))
    with pytest.raises(SplitError, match="nowhere"):
        sweep(zoo.Patches(), X)
