from __future__ import annotations

import pytest
import torch
from torch import nn

import delta.models
from delta.errors import ModelError
from delta.models.macs import count_macs
from delta.models.resnet import BasicBlock, ResNet


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet_small"])
@pytest.mark.parametrize(("stem", "side"), [("cifar", 8), ("imagenet", 32)])
def test_names_shapes_and_arguments(name: str, stem: str, side: int) -> None:
    model = getattr(delta.models, name)(classes=7, in_channels=2, stem=stem, width=4)
    for part in ("conv1", "bn1", "act", "layer1", "layer2", "layer3", "avgpool", "fc"):
        assert isinstance(model.get_submodule(part), nn.Module)
    assert model(torch.randn(3, 2, side, side)).shape == (3, 7)
    assert isinstance(model.maxpool, nn.MaxPool2d) == (stem == "imagenet")
    assert model.target == f"delta.models:{name}"


def test_the_stems_activation() -> None:
    assert isinstance(delta.models.resnet18(classes=2, width=4).act, nn.ReLU)
    prelu = delta.models.resnet18(classes=2, width=4, activation="prelu").act
    assert isinstance(prelu, nn.PReLU)
    assert prelu.num_parameters == 4


def test_a_block_against_its_formula() -> None:
    block = BasicBlock(3, 5, stride=2).eval()
    x = torch.randn(2, 3, 6, 6)
    inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), torch.relu(inner + block.downsample(x)))
    assert isinstance(BasicBlock(4, 4).downsample, nn.Identity)


def test_the_small_one_is_small() -> None:
    model = delta.models.resnet_small(classes=10)
    assert count_macs(model, torch.zeros(1, 3, 32, 32)) < 13_000_000


def test_it_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 1, 8, 8, generator=generator)
    y = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()
    torch.manual_seed(0)
    model = delta.models.resnet_small(classes=2, in_channels=1, width=8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert float((model(x).argmax(1) == y).float().mean()) > 0.95


@pytest.mark.parametrize("blocks", [(), (0,), (1,) * 9])
def test_wrong_stages_are_refused(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="blocks"):
        ResNet(blocks=blocks, classes=3)
