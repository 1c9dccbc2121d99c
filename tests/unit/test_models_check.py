from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from delta.models import resnet_small
from delta.models.check import check_model
from delta.models.plan_table import render_obstacles
from tests.unit import models_zoo as zoo

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "build", [zoo.Plain, zoo.LongSkip, zoo.Functional, zoo.BranchesElsewhere, zoo.sequential, zoo.Unused]
)
def test_sound_models_have_no_obstacles(build) -> None:
    assert check_model(build().eval(), X) == []


def test_a_model_by_name_is_built_in_eval_mode() -> None:
    assert check_model("resnet_small", X, arguments={"classes": 3, "width": 4}) == []
    assert check_model("resnet_small", X, at="layer2", arguments={"classes": 3, "width": 4}) == []


EXPECTED = [
    (zoo.TupleOut, "", "returns a tuple of 2", "wrap it"),
    (zoo.DictOut, "", "mapping with logits", "wrap it"),
    (zoo.Softmax, "", "ends in a softmax", "return what goes into"),
    (zoo.LogSoftmax, "", "ends in a log-softmax", "return what goes into"),
    (zoo.Mixing, "centre", "mixes the records", "axis 0"),
    (zoo.MixingInline, "", "mixes the records", "axis 0"),
    (zoo.FixedBatch, "", "fails on one alone", "batch size"),
    (zoo.AlwaysDrops, "", "random", "nn.Dropout"),
    (zoo.AsksMode, "", "asks self.training", "nn.Dropout"),
    (zoo.NotFinite, "overflow", "NaN or infinite", "division by 0"),
    (zoo.Branches, "", "dynamic control flow", "module of its own"),
    (zoo.Patches, "block", "no 4-D feature map", "feature maps"),
]


@pytest.mark.parametrize(
    ("build", "module", "reason", "mend"), EXPECTED, ids=lambda v: getattr(v, "__name__", None)
)
def test_each_obstacle_is_named_with_its_mend(build, module: str, reason: str, mend: str) -> None:
    found = check_model(build().eval(), X)
    assert any(o.module == module and reason in o.reason and mend in o.mend for o in found), found
    assert len(found) == len(set(found))
    text = render_obstacles(found)
    assert reason in text
    json.dumps([o.to_json() for o in found])


@pytest.mark.parametrize(
    ("build", "at", "reason"),
    [
        (zoo.Skip, "second", "second tensor crosses"),
        (zoo.Twice, "again", "called 2 times"),
        (zoo.Tied, "fourth", "before and after"),
        (zoo.Plain, "third", "no such module"),
        (zoo.Plain, "first", "backbone would be empty"),
        (zoo.Plain, "head.2", "no 4-D feature map"),
    ],
)
def test_a_split_point_in_mind_is_checked(build, at: str, reason: str) -> None:
    (only,) = check_model(build().eval(), X, at=at)
    assert only.module == at
    assert reason in only.reason


def test_batch_norm_in_train_mode_is_one_obstacle() -> None:
    model = resnet_small(classes=3, width=4).eval()
    assert check_model(model, X) == []
    model.layer2.train()
    (only,) = check_model(model, X)
    assert only.module == "layer2.0.bn1"
    assert "3 BatchNorm modules are in train mode" in only.reason
    assert "eval()" in only.mend
    assert model.layer2.training
    assert not model.layer1.training


def test_batch_norm_without_running_statistics_mixes_records() -> None:
    model = zoo.Plain().eval()
    model.first[1] = nn.BatchNorm2d(8, track_running_stats=False).eval()
    reasons = {(o.module, o.reason[:20]) for o in check_model(model, X)}
    assert ("first.1", "it keeps no running ") in reasons
    assert any(module == "first.1" and reason.startswith("it mixes") for module, reason in reasons)


def test_a_block_that_does_not_fit_gives_the_nearest() -> None:
    (only,) = check_model(zoo.Plain().eval(), X, at="second", block=3, keep=2)
    assert "8x8x8" in only.reason
    assert "2 or 4" in only.mend
    odd = check_model(zoo.Plain().eval(), torch.randn(1, 3, 11, 11), at="second")
    assert "cannot be cropped" in odd[0].reason
    assert check_model(zoo.Plain().eval(), X, block=4, keep=2) == []
    (nowhere,) = check_model(zoo.Plain().eval(), X, block=16, keep=8)
    assert "does not fit the block DCT" in nowhere.reason


def test_wrong_inputs_are_obstacles_and_not_crashes() -> None:
    (shape,) = check_model(zoo.Plain().eval(), torch.zeros(3, 8, 8))
    assert "[n, channels, height, width]" in shape.reason
    found = check_model(zoo.Plain().eval(), torch.zeros(1, 4, 8, 8))
    assert found[0].module == "first.0"
    assert "fails on records [3, 4, 8, 8]" in found[0].reason


def test_a_model_without_modules() -> None:
    class Bare(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    (only,) = check_model(Bare().eval(), X)
    assert "no submodules" in only.reason


def test_checking_changes_nothing() -> None:
    model = zoo.AsksMode().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    check_model(model, X)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert render_obstacles([]) == "no obstacles"
