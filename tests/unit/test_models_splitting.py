from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from delta.errors import InputError, ModelError, SplitError
from delta.models import resnet18, resnet34, resnet_small
from delta.models.splitting import Parts, split, split_points
from tests.unit import models_zoo as zoo

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ZOO = "tests.unit.models_zoo"


def halves_agree(parts: Parts, x: torch.Tensor) -> None:
    parts.model.eval()
    with torch.no_grad():
        ir = parts.backbone(x)
        assert ir.shape == (len(x), *parts.ir_shape)
        torch.testing.assert_close(parts.body(ir.clone()), parts.model(x))


def weights(module: nn.Module) -> set[int]:
    return {id(p) for p in module.parameters()}


@pytest.mark.parametrize(
    "build", [zoo.Plain, zoo.LongSkip, zoo.BranchesElsewhere, zoo.Functional, zoo.AsksMode]
)
def test_the_halves_are_the_model_and_share_its_parameters(build) -> None:
    model = build()
    parts = split(model, at="second", example=X)
    halves_agree(parts, torch.randn(5, 3, 8, 8))
    assert parts.at == "second"
    assert parts.input_shape == (3, 8, 8)
    assert parts.ir_shape == (8, 8, 8)
    assert parts.classes == 5
    assert weights(parts.backbone) | weights(parts.body) <= weights(model)
    assert not weights(parts.backbone) & weights(parts.body)
    own = dict(model.named_parameters())
    for half in (parts.backbone, parts.body):
        assert all(own[name] is parameter for name, parameter in half.named_parameters())


def test_a_sequential_model_splits_at_a_number_and_inside_a_stage() -> None:
    model = zoo.sequential()
    halves_agree(split(model, at="1", example=X), X)
    inner = split(model, at="1.1", example=X)
    halves_agree(inner, X)
    assert inner.ir_shape == (12, 4, 4)


def test_a_zero_example_is_enough() -> None:
    halves_agree(split(zoo.Plain(), at="second", example=torch.zeros(1, 3, 8, 8)), X)


def test_parts_move_as_a_whole() -> None:
    parts = split(zoo.Normalises(), at="second", example=X)
    halves_agree(parts, X)
    assert {"mean"} <= set(parts.backbone.state_dict())
    assert {"gain"} <= set(parts.body.state_dict())
    assert parts.to(torch.float64) is parts
    halves_agree(parts, X.double())
    own = dict(parts.model.named_parameters())
    assert all(own[name] is p for half in (parts.backbone, parts.body) for name, p in half.named_parameters())


def test_a_copy_of_a_half_is_independent() -> None:
    parts = split(zoo.Plain(), at="second", example=X)
    twin = copy.deepcopy(parts.body)
    assert not weights(twin) & weights(parts.body)
    twin.load_state_dict(parts.body.state_dict())


def test_gradients_reach_both_halves_and_training_changes_the_model() -> None:
    model = zoo.Plain()
    parts = split(model, at="second", example=X)
    before = model.second[0].weight.detach().clone()
    optimizer = torch.optim.SGD(parts.body.parameters(), lr=1.0)
    parts.body(parts.backbone(X).detach()).square().sum().backward()
    optimizer.step()
    assert model.first[0].weight.grad is None
    assert not torch.equal(model.second[0].weight, before)


def test_the_model_stays_as_it_was() -> None:
    model = zoo.Plain().train()
    model.second.eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    split(model, at="second", example=X)
    split_points(model, X)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


REFUSED = [
    (zoo.Skip, "second", ["'second'", "module 'first' feeds", "second tensor crosses"]),
    (zoo.Branches, "second", ["the model itself", "dynamic control flow", "module of its own"]),
    (zoo.Twice, "again", ["'again'", "called 2 times"]),
    (zoo.TupleOut, "second", ["returns tuple", "only the logits"]),
    (zoo.Patches, "head", ["'head'", "no 4-D feature map", "[3, 16]"]),
    (zoo.Patches, "block", ["'block'", "no 4-D feature map"]),
    (zoo.Plain, "first", ["backbone would be empty"]),
    (zoo.Plain, "secnd", ["no such module", "nearest names are second"]),
    (zoo.Plain, "", ["no such module"]),
    (zoo.Mixing, "second", ["before it the records of a batch are mixed"]),
    (zoo.InPlace, "second", ["in-place"]),
    (zoo.Tied, "fourth", ["'fourth.0.weight'", "before and after the cut"]),
    (zoo.Unused, "spare", ["never calls it"]),
    (zoo.Unused, "layers", ["never calls it", "layers.0"]),
    (zoo.TwoInputs, "merge", ["takes 2 tensors"]),
    (zoo.AlwaysDrops, "second", ["differs from model(x)"]),
]


@pytest.mark.parametrize(("build", "at", "words"), REFUSED, ids=lambda v: getattr(v, "__name__", None))
def test_a_refusal_names_module_reason_and_mend(build, at: str, words: list[str]) -> None:
    with pytest.raises(SplitError) as caught:
        split(build(), at=at, example=X)
    text = str(caught.value)
    assert text.startswith("cannot split at ")
    assert "\n" not in text
    for word in words:
        assert word in text


def test_a_refusal_inside_a_block_names_the_block_that_works() -> None:
    with pytest.raises(SplitError, match=r"'block' works"):
        split(zoo.LongSkip(), at="block.b", example=X)


@pytest.mark.parametrize(
    "example", [torch.zeros(3, 8, 8), torch.zeros(0, 3, 8, 8), [[1.0]], torch.zeros(2, 3)]
)
def test_the_example_must_be_a_batch_of_images(example) -> None:
    with pytest.raises(InputError, match=r"batch of records"):
        split(zoo.Plain(), at="second", example=example)


def test_an_example_of_another_shape_is_named() -> None:
    with pytest.raises(SplitError, match=r"fails on records \[3, 4, 8, 8\]"):
        split(zoo.Plain(), at="second", example=torch.zeros(1, 4, 8, 8))


def test_a_module_with_two_names_answers_to_both() -> None:
    model = zoo.Plain()
    model.alias = model.second
    assert split(model, at="alias", example=X).at == "second"


def test_the_architecture_is_found_where_it_can_be() -> None:
    parts = split(zoo.Plain(), at="second", example=X)
    assert parts.architecture is not None
    assert (parts.architecture.target, parts.architecture.split_at) == (f"{ZOO}:Plain", "second")
    assert split(zoo.Configured(5), at="second", example=X).architecture is None
    assert split(zoo.sequential(), at="1", example=X).architecture is None


def test_a_model_that_differs_from_its_class_in_behaviour_has_no_architecture() -> None:
    model = zoo.Plain()
    model.second[2] = nn.Tanh()
    assert split(model, at="second", example=X).architecture is None


def test_a_target_given_by_hand_is_checked() -> None:
    target = f"{ZOO}:configured"
    parts = split(zoo.Configured(7), at="second", example=X, target=target, arguments={"classes": 7})
    assert parts.architecture is not None
    assert parts.architecture.arguments == {"classes": 7}
    with pytest.raises(ModelError, match="builds another model"):
        split(zoo.Configured(7), at="second", example=X, target=target, arguments={"classes": 6})


def test_a_name_builds_the_model() -> None:
    parts = split("resnet_small", at="layer1", example=X, arguments={"classes": 4, "width": 4})
    assert parts.architecture is not None
    assert parts.architecture.target == "delta.models:resnet_small"
    assert parts.classes == 4
    mine = split(f"{ZOO}:Plain", at="second", example=X)
    assert mine.architecture is not None
    assert mine.architecture.target == f"{ZOO}:Plain"


@pytest.mark.parametrize(
    ("model", "x", "ir_shape"),
    [
        (resnet18(classes=10, width=8), torch.zeros(1, 3, 32, 32), (8, 32, 32)),
        (resnet34(classes=10, width=8, stem="imagenet"), torch.zeros(1, 3, 64, 64), (8, 16, 16)),
        (resnet_small(classes=10, in_channels=1, activation="prelu"), torch.zeros(1, 1, 8, 8), (16, 8, 8)),
    ],
)
def test_our_resnets_split_at_layer1(
    model: nn.Module, x: torch.Tensor, ir_shape: tuple[int, int, int]
) -> None:
    parts = split(model, at="layer1", example=x)
    assert parts.ir_shape == ir_shape
    assert parts.architecture is not None
    halves_agree(parts, torch.randn(3, *x.shape[1:]))
    assert {name.split(".")[0] for name, _ in parts.backbone.named_parameters()} <= {"conv1", "bn1", "act"}


def test_split_points_of_a_resnet_are_between_and_not_inside_its_blocks() -> None:
    points = {p.at: p.ir_shape for p in split_points(resnet_small(classes=3, width=4), X)}
    assert {"bn1", "act", "layer1", "layer2", "layer3", "avgpool"} <= set(points)
    assert not {"conv1", "fc", "layer2.0.conv2", "layer2.0.bn1"} & set(points)
    assert points["layer2"] == (4, 8, 8)
    assert points["avgpool"] == (16, 2, 2)


def test_every_split_point_can_be_split_at() -> None:
    for build in (zoo.LongSkip, zoo.Functional, zoo.BranchesElsewhere, zoo.Unused):
        model = build()
        points = split_points(model, X)
        assert points
        for point in points:
            parts = split(model, at=point.at, example=X)
            assert parts.ir_shape == point.ir_shape
            halves_agree(parts, X)


def test_a_transformer_has_no_split_points() -> None:
    assert split_points(zoo.Patches(), X) == []
