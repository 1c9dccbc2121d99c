from __future__ import annotations

import pytest
import torch
from torch import nn

from delta.errors import ModelError
from delta.methods.he.network import last_layer, read_network
from delta.models import he_cnn, resnet_small
from delta.models.square_net import Quadratic, Square, SquareNet
from delta.models.targets import infer_target

RECORD = torch.zeros(1, 1, 8, 8)


def row(*layers):
    return nn.Sequential(*layers).eval()


FLAT = (nn.Flatten(), nn.Linear(64, 4))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (row(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)), r"'1' \(ReLU\).*Square"),
        (
            row(nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU()), nn.Flatten(), nn.Linear(72, 4)),
            r"'0.1' \(GELU\)",
        ),
        (row(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 4)), r"'0' \(MaxPool2d\).*AvgPool2d"),
        (row(*FLAT, nn.LayerNorm(4)), r"'2' \(LayerNorm\).*BatchNorm2d"),
        (row(nn.Flatten(), Square(), nn.Linear(64, 4)), "'1' follows no linear layer"),
        (row(*FLAT, Square()), "ends with a linear layer"),
        (row(nn.Flatten(), nn.Linear(64, 4), Quadratic(a=0.0), nn.Linear(4, 2)), "lost its square"),
        (
            row(nn.Flatten(), nn.Linear(64, 4), Square(), nn.Linear(5, 2)),
            "'3' does not take what comes before",
        ),
        (row(nn.Conv2d(1, 1, 3, padding="same"), Square(), *FLAT), "'0' pads by 'same'"),
        (resnet_small(classes=4, in_channels=1, width=2).eval(), "reads an nn.Sequential.*ResNet is none"),
    ],
)
def test_what_cannot_run_encrypted_is_refused_by_name(model, words):
    with pytest.raises(ModelError, match=words):
        read_network(model, RECORD)


def test_a_forward_of_its_own_is_found_out():
    class Odd(nn.Sequential):
        def forward(self, x):
            return -super().forward(x)

    with pytest.raises(ModelError, match="forward of Odd"):
        read_network(Odd(*FLAT).eval(), RECORD)


def test_weights_that_are_not_finite_are_refused():
    model = row(*FLAT)
    model[1].weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"does something else|not finite"):
        read_network(model, RECORD)


def test_the_model_stays_as_it_was():
    model = he_cnn(classes=3, in_channels=1, grid=2).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    read_network(model.eval(), RECORD)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert next(model.parameters()).dtype == torch.float32


def test_he_cnn_can_be_built_again_and_refuses_sizes():
    model = he_cnn(classes=3, in_channels=1, width=2, hidden=0, grid=2)
    assert isinstance(model, SquareNet)
    architecture = infer_target(model)
    assert architecture is not None
    assert architecture.target == "delta.models:he_cnn"
    assert architecture.arguments["hidden"] == 0
    with pytest.raises(ModelError, match="width=0"):
        he_cnn(classes=3, width=0)
    with pytest.raises(ModelError, match="hidden=-1, grid=True"):
        he_cnn(classes=3, hidden=-1, grid=True)


def test_the_last_layer_is_found_by_name_and_must_be_last():
    name, layer = last_layer(resnet_small(classes=4, in_channels=1, width=2).eval(), RECORD)
    assert name == "fc"
    assert layer.out_features == 4
    with pytest.raises(ModelError, match="something comes after '1'"):
        last_layer(row(*FLAT, nn.ReLU()), RECORD)
    with pytest.raises(ModelError, match="'0' is Conv2d"):
        last_layer(row(nn.Conv2d(1, 4, 8), nn.Flatten()), RECORD)
