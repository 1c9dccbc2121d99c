from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta.errors import ModelError
from delta.models import resnet18
from delta.models.activations import count_nonlinear
from delta.models.mpc import plan_mpc
from delta.models.mpc_constants import PROTOCOLS, RESNET32_RELUS
from delta.models.mpc_table import byte_size, render_mpc
from delta.models.resnet import ResNet
from tests.unit import models_zoo as zoo

X = torch.zeros(2, 3, 8, 8)
VALUES = 3 * 8 * 8


class Does(nn.Module):
    """A network of one function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.fixture(scope="module")
def resnet18_mpc():
    with torch.device("meta"):
        model = resnet18(classes=100)
    return plan_mpc(model, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("blocks", "width", "relus", "layers"),
    [
        ((2, 2, 2, 2), 64, 557_056, 17),
        ((3, 3, 3), 16, 7 * 16 * 32**2 + 6 * 32 * 16**2 + 6 * 64 * 8**2, 19),
        ((5, 5, 5), 16, RESNET32_RELUS, 31),
    ],
)
def test_relus_of_resnets(blocks, width, relus, layers) -> None:
    with torch.device("meta"):
        model = ResNet(blocks=blocks, width=width, classes=10)
    work = count_nonlinear(model, torch.zeros(3, 3, 32, 32))
    assert (work.relus, work.maxima, work.layers, work.steps) == (relus, 0, layers, layers)
    shortcuts = len(blocks) - 1
    assert work.linear_layers == 1 + 2 * sum(blocks) + shortcuts + 1
    assert work.not_modelled == ()


def test_the_stem_for_large_images_pools_by_maxima() -> None:
    with torch.device("meta"):
        model = resnet18(classes=10, stem="imagenet")
    work = count_nonlinear(model, torch.zeros(1, 3, 224, 224))
    # 3×3 windows at stride 2 on 112 values with one of padding: the first window of an axis covers two values.
    assert work.maxima == 64 * ((3 * 56 - 1) ** 2 - 56**2)
    assert work.layers == 18
    assert work.steps == 17 + 4


@pytest.mark.parametrize(
    ("module", "relus", "maxima", "steps"),
    [
        (Does(F.relu), VALUES, 0, 1),
        (Does(lambda x: torch.relu_(x.clone())), VALUES, 0, 1),
        (Does(lambda x: x.clamp(min=0)), VALUES, 0, 1),
        (Does(lambda x: x.clamp(0, 6)), 2 * VALUES, 0, 1),
        (Does(lambda x: F.threshold(x, 0.1, 0.0)), VALUES, 0, 1),
        (Does(lambda x: x.abs()), VALUES, 0, 1),
        (Does(lambda x: torch.zeros_like(x).copy_(x).relu()), VALUES, 0, 1),
        (Does(lambda x: torch.ones_like(x).relu() + x), 0, 0, 0),
        (nn.ReLU6(), 2 * VALUES, 0, 1),
        (nn.PReLU(3), VALUES, 0, 1),
        (nn.LeakyReLU(0.1), VALUES, 0, 1),
        (nn.RReLU(), VALUES, 0, 1),
        (Does(lambda x: torch.maximum(x, 0.1 * x)), 0, VALUES, 1),
        (Does(lambda x: torch.max(x, 0.1 * x)), 0, VALUES, 1),
        (Does(lambda x: x.max(1).values), 0, 2 * 64, 2),
        (Does(lambda x: x.amax((2, 3))), 0, 3 * 63, 6),
        (nn.MaxPool2d(2), 0, 3 * 16 * 3, 2),
        (nn.MaxPool2d(3, stride=2, padding=1), 0, 3 * (11**2 - 4**2), 4),
        (nn.MaxPool2d(3, stride=3, ceil_mode=True), 0, 3 * (8**2 - 3**2), 4),
        (nn.MaxPool2d(2, stride=1, dilation=2), 0, 3 * (12**2 - 6**2), 2),
        (nn.AdaptiveMaxPool2d(1), 0, 3 * 63, 6),
        (nn.AdaptiveMaxPool2d(3), 0, 3 * (10**2 - 3**2), 4),
        (Does(lambda x: F.max_pool1d(x.flatten(2), 3)), 0, 3 * 21 * 2, 2),
        (Does(lambda x: F.max_pool3d(x, (3, 2, 2), (3, 2, 2))), 0, 16 * 11, 4),
    ],
)
def test_comparisons_by_hand(module, relus, maxima, steps) -> None:
    work = count_nonlinear(module, X)
    assert (work.relus, work.maxima, work.steps) == (relus, maxima, steps)
    assert work.layers == (1 if steps else 0)
    assert work.not_modelled == ()


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(3),
        nn.Dropout(),
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(3),
        nn.Conv2d(3, 4, 3),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.PixelUnshuffle(2),
        Does(lambda x: torch.cat([x, 2 * x - 1], 1).flip(1).roll(1, 2)[:, [0, 2]] / 3),
        Does(lambda x: torch.einsum("bchw,dc->bdhw", x, torch.ones(2, 3, device=x.device))),
        Does(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect").transpose(1, 2).flatten(1).sum(1)),
    ],
)
def test_linear_work_has_no_comparison(module) -> None:
    work = count_nonlinear(module, X)
    assert (work.comparisons, work.layers, work.not_modelled) == (0, 0, ())


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (nn.GELU(), ["gelu"]),
        (nn.Sigmoid(), ["sigmoid"]),
        (nn.SiLU(), ["silu"]),
        (nn.Hardswish(), ["hardswish"]),
        (nn.Softmax(1), ["softmax"]),
        (nn.GroupNorm(1, 3), ["group_norm"]),
        (nn.InstanceNorm2d(3), ["batch_norm on the record's own statistics"]),
        (Does(lambda x: x * x), ["mul of two activations"]),
        (Does(lambda x: x**2), ["pow 2"]),
        (Does(lambda x: 1 / x), ["reciprocal"]),
        (Does(lambda x: x @ x), ["bmm of two activations"]),
        (Does(lambda x: torch.where(x > 0, x, 0 * x)), ["gt", "where"]),
        (Does(lambda x: x.long().float()), ["rounding"]),
        (Does(lambda x: torch.div(x, 2, rounding_mode="floor")), ["div"]),
        (Does(lambda x: x[:, x[0, :, 0, 0].argmax()]), ["argmax", "branch on a value"]),
        (Does(torch.special.i0), ["i0"]),
    ],
)
def test_what_is_no_comparison_is_named_with_its_size(module, names) -> None:
    work = count_nonlinear(module, X + 1)
    assert [row.name for row in work.not_modelled] == names
    assert all(row.calls == 1 and row.values >= 1 for row in work.not_modelled)
    assert work.comparisons == 0


def test_models_that_meta_tensors_cannot_run_are_counted_for_real() -> None:
    work = count_nonlinear(zoo.BranchesElsewhere(), X)
    assert work.relus == count_nonlinear(zoo.Plain(), X).relus == 8 * 64 + 12 * 16
    assert [row.name for row in work.not_modelled] == ["branch on a value"]


def test_attention_is_named_and_the_rest_of_a_transformer_counted() -> None:
    work = count_nonlinear(zoo.Patches(), X)
    assert work.relus == 4 * 32
    names = {row.name for row in work.not_modelled}
    assert {"softmax", "layer_norm", "bmm of two activations"} <= names


def test_counting_changes_nothing_and_a_model_that_does_not_run_is_refused() -> None:
    model = zoo.Plain().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    count_nonlinear(model, torch.randn(4, 3, 8, 8))
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    with pytest.raises(ModelError, match=r"fails on inputs \[1, 4, 8, 8\]"):
        count_nonlinear(model, torch.zeros(1, 4, 8, 8))


def test_resnet18_under_each_protocol(resnet18_mpc) -> None:
    by_name = {cost.name: cost for cost in resnet18_mpc.protocols}
    garbled, circa, tables = by_name["garbled_circuits"], by_name["circa"], by_name["lookup_tables"]
    assert (garbled.online_bytes, garbled.offline_bytes, garbled.rounds) == (557_056_000, 9_191_424_000, 18)
    assert (tables.online_bytes, tables.offline_bytes, tables.rounds) == (1_114_112, 142_606_336, 18)
    assert circa.online_bytes is None
    assert garbled.offline_bytes / circa.offline_bytes == pytest.approx(4.7)
    assert circa.rounds == 2 * 17 + 1
    assert (circa.bounds["offline_bytes"], garbled.bounds["offline_bytes"]) == ("at least", "about")
    assert resnet18_mpc.macs == 555_468_800


def test_the_constants_give_back_what_was_published_of_resnet32() -> None:
    model = ResNet(blocks=(5, 5, 5), width=16, classes=10)
    garbled = plan_mpc(model, torch.zeros(1, 3, 32, 32)).protocols[0]
    assert garbled.online_bytes == pytest.approx(300e6, rel=0.02)
    assert garbled.offline_bytes == pytest.approx(5e9, rel=0.01)


def test_every_constant_has_a_source_and_a_confidence() -> None:
    for protocol in PROTOCOLS:
        for constant in (protocol.online, protocol.offline, protocol.rounds):
            if constant is not None:
                assert constant.value > 0
                assert len(constant.source) > 20
                assert constant.confidence in ("high", "medium", "low")


def test_maxima_take_a_round_a_step_where_tables_have_one_operand() -> None:
    costs = {cost.name: cost for cost in plan_mpc(nn.MaxPool2d(4), X).protocols}
    assert costs["lookup_tables"].rounds == 4 + 1
    assert costs["garbled_circuits"].rounds == 1 + 1
    assert costs["lookup_tables"].online_bytes == 2 * 3 * 4 * 15


def test_the_json_is_marked_modelled_and_says_what_is_missing(resnet18_mpc) -> None:
    value = json.loads(json.dumps(resnet18_mpc.to_json()))
    assert (value["modelled"], value["complete"], value["not_modelled"]) == (True, True, [])
    assert value["counted"]["relus"] == 557_056
    for cost in value["protocols"]:
        assert {"online_bytes", "offline_bytes", "rounds", "sources", "assumptions"} <= set(cost)
    assert any("homomorphic" in note for note in value["notes"])

    other = plan_mpc(nn.Sequential(nn.ReLU(), nn.GELU(), nn.GELU()), X)
    value = json.loads(json.dumps(other.to_json()))
    assert value["complete"] is False
    assert value["not_modelled"] == [{"name": "gelu", "calls": 2, "values": 2 * VALUES}]
    assert all(bound == "at least" for cost in value["protocols"] for bound in cost["bounds"].values())
    assert "gelu" in value["notes"][0]


def test_the_table(resnet18_mpc) -> None:
    text = render_mpc(resnet18_mpc)
    assert str(resnet18_mpc) == text
    head = text.split("\nnote:")[0]
    for words in (
        "modelled, nothing was run",
        "557,056 ReLUs",
        "557 MB",
        "9.19 GB",
        "1.11 MB",
        "≥ 143 MB",
        "not known",
    ):
        assert words in head
    assert max(map(len, head.splitlines())) < 120
    assert text.count("confidence") == sum(len(cost.sources) for cost in resnet18_mpc.protocols)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (2e6, "2 MB"), (3.14159e12, "3.14 TB")]
)
def test_byte_sizes(value, text) -> None:
    assert byte_size(value) == text
