"""The layout of layers on slots, computed without encryption: it is exact there, whatever the sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from delta.errors import ModelError
from delta.methods.he.circuit import Circuit, needed_slots
from delta.methods.he.network import read_network
from delta.methods.he.parameters import choose_ring
from delta.methods.he.spec import Spec, depth_of
from delta.models.square_net import Quadratic, Square, he_cnn


class Slots:
    """Ciphertexts are `[slots]` tensors here; `rotations` and `levels` note what was asked."""

    def __init__(self):
        self.rotations = set()
        self.levels = 0

    def times(self, x, constant):
        return x * constant

    def add(self, x, y):
        return x + y

    def add_constant(self, x, constant):
        return x + constant

    def rotated(self, x, step):
        self.rotations.add(step)
        return x.roll(-step)

    def rescaled(self, x):
        self.levels += 1
        return x

    def squared(self, x):
        return x * x


def circuit_of(network, shape):
    depth = depth_of(network.patches is not None, len(network.widths) - 1)
    slots = needed_slots(network.patches, network.widths, shape)
    ring = choose_ring(depth=depth, precision=24, slots=slots)
    spec = Spec(mode="network", ring=ring, integer_bits=11, patches=network.patches, widths=network.widths)
    return Circuit(spec, shape)


MODELS = {
    "he_cnn": ((1, 16, 16), lambda: he_cnn(classes=10, in_channels=1, width=3, hidden=7, grid=3)),
    "no hidden layer": ((1, 16, 16), lambda: he_cnn(classes=10, in_channels=1, width=3, hidden=0, grid=4)),
    "colours": ((3, 8, 8), lambda: he_cnn(classes=3, width=2, hidden=5, kernel=3, stride=2, grid=3)),
    "more logits than lie between two values": (
        (1, 4, 4),
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2, stride=2), Square(), nn.Flatten(), nn.Linear(8, 3), Square(), nn.Linear(3, 9)
        ),
    ),
    "three linear layers": (
        (1, 3, 5),
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Linear(15, 6),
            Quadratic(0.5, 1.0, -0.25),
            nn.Linear(6, 20),
            Square(),
            nn.Linear(20, 4),
        ),
    ),
    "two convolutions": (
        (1, 8, 8),
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2, stride=2),
            Square(),
            nn.Conv2d(2, 3, 2, stride=2),
            nn.BatchNorm2d(3),
            Square(),
            nn.Flatten(),
            nn.Linear(12, 4),
        ),
    ),
    "one linear layer": ((2, 3, 3), lambda: nn.Sequential(nn.Flatten(), nn.Linear(18, 5))),
    "more logits than one ciphertext holds": (
        (1, 32, 32),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(1024, 11)),
    ),
    "padding and dilation": (
        (2, 9, 7),
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
            Quadratic(),
            nn.Flatten(),
            nn.Linear(135, 4),
        ),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_circuit_computes_the_network(name):
    torch.manual_seed(0)
    shape, build = MODELS[name]
    model = build()
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.uniform_(layer.bias, -1, 1)
    model.eval()
    x = torch.rand(3, *shape)
    network = read_network(model, x[:1])
    circuit = circuit_of(network, shape)
    expected = model.double()(x.double())
    torch.testing.assert_close(network.plain(x), expected)

    constants = []
    for layer, weights in zip(circuit.layers, network.layers, strict=True):
        c = layer.constants(weights.weight, weights.bias)
        constants.append((c.weights, c.biases))
    for row, logits in zip(circuit.encoded(x), expected, strict=True):
        ops = Slots()
        found = circuit.run(row, constants, ops)
        values = torch.cat([y[slots] for y, (_, slots) in zip(found, circuit.results, strict=True)])
        torch.testing.assert_close(values, logits)
        assert ops.rotations <= set(circuit.rotations)


def test_few_rotations_do_the_work_of_many():
    model = he_cnn(classes=10, in_channels=1).eval()
    circuit = circuit_of(read_network(model, torch.zeros(1, 1, 32, 32)), (1, 32, 32))
    assert len(circuit.rotations) == 13  # of 4095: 6 for patches, 6 for windows, 1 for the logits
    assert circuit.slots == 4096


def test_a_record_of_another_size_is_refused():
    model = he_cnn(classes=10, in_channels=1).eval()
    network = read_network(model, torch.zeros(1, 1, 32, 32))
    with pytest.raises(ModelError, match="the next layer takes"):
        needed_slots(network.patches, network.widths, (1, 16, 16))
    flat = read_network(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).eval(), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ModelError, match="a record has 25 values"):
        circuit_of(flat, (1, 5, 5))
