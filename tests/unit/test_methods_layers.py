"""The linear layers of a model: found in order, replaced in a copy, refused where they cannot stand alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from delta.errors import ModelError
from delta.methods.layers import linear_layers, with_layers
from delta.models.macs import count_macs
from tests.trained import small_parts


def test_all_layers_are_found_with_their_shapes_and_macs():
    model, record = small_parts().model, torch.zeros(1, 1, 16, 16)
    layers = linear_layers(model, record)
    assert sum(layer.macs for layer in layers) == count_macs(model, record)
    assert layers[0].input_shape == (1, 16, 16)
    assert layers[-1].output_shape == (10,)
    assert {layer.name for layer in layers} == {
        name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))
    }


def test_replaced_layers_stand_in_a_copy_and_share_nothing_with_the_rest():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x[:, :2]

    spied = with_layers(model, {"2": Spy()})
    x = torch.randn(4, 3)
    torch.testing.assert_close(spied(x), torch.relu(model[0](x))[:, :2])
    assert len(seen) == 1
    assert isinstance(model[2], nn.Linear)
    assert spied[0].weight is not model[0].weight


@pytest.mark.parametrize("spoil", ["twice", "padding", "none", "records"])
def test_what_cannot_run_layer_by_layer_is_refused_by_name(spoil):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            padding_mode = "reflect" if spoil == "padding" else "zeros"
            self.conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode=padding_mode)
            self.fc = nn.Linear(16, 2)

        def forward(self, x):
            if spoil == "none":
                return x.flatten(1)[:, :2]
            x = self.conv(x)
            if spoil == "twice":
                x = self.conv(x)
            return (
                self.fc(x.reshape(16)[None]) if spoil != "records" else self.fc(x.reshape(2, 8).repeat(1, 2))
            )

    with pytest.raises(ModelError) as caught:
        linear_layers(Model(), torch.randn(1, 1, 4, 4))
    named = {"twice": "'conv'", "padding": "reflect", "none": "no nn.Conv2d", "records": "'fc'"}[spoil]
    assert named in str(caught.value)
