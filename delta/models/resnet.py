"""ResNets of basic blocks (He et al. 2016, arXiv 1512.03385), with stems for small and for large images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from delta.errors import ModelError

__all__ = ["BasicBlock", "ResNet", "resnet18", "resnet34", "resnet_small"]

Stem = Literal["cifar", "imagenet"]
Activation = Literal["relu", "prelu"]

_LARGEST = 1 << 16
"""Bound on classes, channels and width: sizes may come from another machine's manifest."""


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, which is a 1×1 convolution where the shape changes.

    Shapes: `[n, in_channels, h, w] → [n, channels, ⌈h/stride⌉, ⌈w/stride⌉]`.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU()
        self.downsample = shortcut(in_channels, channels, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, in_channels, h, w]` → `[n, channels, h', w']`."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.act2(y + self.downsample(x))
        return out


def shortcut(in_channels: int, channels: int, *, stride: int) -> nn.Module:
    """The identity where the shape stays, else a 1×1 convolution with batch normalisation."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
    )


def initialise(module: nn.Module) -> None:
    """He's normal initialisation of every convolution (arXiv 1502.01852)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


class ResNet(nn.Module):
    """A ResNet: stem (`conv1`, `bn1`, `act`, `maxpool`), stages `layer1`, `layer2`, …, `avgpool`, `fc`.

    Shapes: `[n, in_channels, H, W] → [n, classes]`.

    Attributes:
        target: import path of the builder; empty for a ResNet made by hand.
        arguments: the builder's arguments, plain JSON.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[int],
        classes: int,
        in_channels: int = 3,
        stem: Stem = "cifar",
        width: int = 64,
        activation: Activation = "relu",
    ) -> None:
        """Stage i has `blocks[i]` blocks of `width`·2ⁱ channels; all but the first halve the size.

        Args:
            blocks: blocks of each stage.
            classes: number of logits.
            in_channels: of a record.
            stem: `cifar` (3×3, stride 1) or `imagenet` (7×7, stride 2, and max pooling).
            width: channels of the stem and of the first stage.
            activation: of the stem.

        Raises:
            ModelError: a size or a name is not one of the above.
        """
        super().__init__()
        _check(blocks=blocks, classes=classes, in_channels=in_channels, width=width)
        if stem not in ("cifar", "imagenet") or activation not in ("relu", "prelu"):
            raise ModelError(
                f"stem must be 'cifar' or 'imagenet', activation 'relu' or 'prelu', "
                f"got {stem!r}, {activation!r}"
            )
        self.target = ""
        self.arguments: dict[str, Any] = {}
        if stem == "cifar":
            self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act: nn.Module = nn.ReLU() if activation == "relu" else nn.PReLU(width)
        self.maxpool: nn.Module = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, stride=2, padding=1)
        channels, self.stages = width, [f"layer{i + 1}" for i in range(len(blocks))]
        for i, (name, count) in enumerate(zip(self.stages, blocks, strict=True)):
            out, stride = width << i, 1 if i == 0 else 2
            stage = [BasicBlock(channels, out, stride=stride)]
            stage += [BasicBlock(out, out) for _ in range(count - 1)]
            self.add_module(name, nn.Sequential(*stage))
            channels = out
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Records `[n, in_channels, H, W]` → logits `[n, classes]`."""
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def resnet18(
    *,
    classes: int,
    in_channels: int = 3,
    stem: Stem = "cifar",
    width: int = 64,
    activation: Activation = "relu",
) -> ResNet:
    """ResNet-18: four stages of two blocks. Arguments as for `ResNet`."""
    return _build("resnet18", (2, 2, 2, 2), classes, in_channels, stem, width, activation)


def resnet34(
    *,
    classes: int,
    in_channels: int = 3,
    stem: Stem = "cifar",
    width: int = 64,
    activation: Activation = "relu",
) -> ResNet:
    """ResNet-34: four stages of 3, 4, 6 and 3 blocks. Arguments as for `ResNet`."""
    return _build("resnet34", (3, 4, 6, 3), classes, in_channels, stem, width, activation)


def resnet_small(
    *,
    classes: int,
    in_channels: int = 3,
    stem: Stem = "cifar",
    width: int = 16,
    activation: Activation = "relu",
) -> ResNet:
    """Three stages of one block, for CPUs: 12 M MACs at 3×32×32. Arguments as for `ResNet`."""
    return _build("resnet_small", (1, 1, 1), classes, in_channels, stem, width, activation)


def _build(
    name: str,
    blocks: tuple[int, ...],
    classes: int,
    in_channels: int,
    stem: Stem,
    width: int,
    activation: Activation,
) -> ResNet:
    arguments: dict[str, Any] = {
        "classes": classes,
        "in_channels": in_channels,
        "stem": stem,
        "width": width,
        "activation": activation,
    }
    model = ResNet(blocks=blocks, **arguments)
    model.target, model.arguments = f"delta.models:{name}", arguments
    return model


def _check(*, blocks: Sequence[int], **sizes: int) -> None:
    wrong = [f"{n}={v!r}" for n, v in sizes.items() if not is_size(v, most=_LARGEST)]
    if not 1 <= len(blocks) <= 8 or not all(is_size(count, most=256) for count in blocks):
        wrong.append(f"blocks={list(blocks)!r}")
    if wrong:
        raise ModelError(
            f"a ResNet takes integers from 1 to {_LARGEST} and 1 to 8 stages of 1 to 256 blocks, "
            f"got {', '.join(wrong)}"
        )


def is_size(value: object, *, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
