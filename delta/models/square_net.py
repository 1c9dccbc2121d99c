"""A small network that encrypted inference can run: a convolution, squares, linear layers, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from delta.errors import ModelError

__all__ = ["Quadratic", "Square", "SquareNet", "he_cnn"]

_LARGEST = 1 << 12
"""Bound on sizes: they may come from another machine's manifest."""


class Square(nn.Module):
    """x² for each value (Gilad-Bachrach et al. 2016, CryptoNets): the activation of lowest degree."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same."""
        return x * x


class Quadratic(nn.Module):
    """a·x² + b·x + c for each value, with three trained scalars; as deep as a square under encryption."""

    def __init__(self, a: float = 0.25, b: float = 0.5, c: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))
        self.b = nn.Parameter(torch.tensor(b))
        self.c = nn.Parameter(torch.tensor(c))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same."""
        return (self.a * x + self.b) * x + self.c


class SquareNet(nn.Sequential):
    """Layers in a row, with what builds them again.

    Attributes:
        target: import target of the builder.
        arguments: of the builder, plain JSON.
    """

    target: str
    arguments: dict[str, Any]


def he_cnn(
    *,
    classes: int,
    in_channels: int = 3,
    width: int = 4,
    hidden: int = 32,
    kernel: int = 8,
    stride: int = 4,
    grid: int = 8,
) -> SquareNet:
    """A convolution, a square, a linear layer, a square, a linear layer; `[n, in_channels, h, w] → [n, classes]`.

    Batch normalisation behind the first two keeps the squares in range while training; afterwards it is part
    of the layer before it, as is the averaging in the layer behind it.

    Args:
        classes: logits a record.
        in_channels: of a record.
        width: channels of the convolution.
        hidden: outputs of the first linear layer; 0 for none, which makes the circuit two levels shallower.
        kernel: of the convolution.
        stride: of the convolution.
        grid: its outputs are averaged to `grid × grid`, so that records of any size fit.

    Raises:
        ModelError: a size is out of range.
    """
    arguments: dict[str, Any] = {
        "classes": classes,
        "in_channels": in_channels,
        "width": width,
        "hidden": hidden,
        "kernel": kernel,
        "stride": stride,
        "grid": grid,
    }
    wrong = [
        f"{name}={value!r}"
        for name, value in arguments.items()
        if isinstance(value, bool)
        or not isinstance(value, int)
        or not (name != "hidden") <= value <= _LARGEST
    ]
    if wrong:
        raise ModelError(
            f"he_cnn takes integers from 1 to {_LARGEST} (hidden: from 0), got {', '.join(wrong)}"
        )
    features = width * grid * grid
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, width, kernel, stride=stride, padding=max(0, (kernel - stride) // 2)),
        nn.BatchNorm2d(width),
        Square(),
        nn.AdaptiveAvgPool2d(grid),
        nn.Flatten(),
    ]
    if hidden:
        layers += [nn.Linear(features, hidden), nn.BatchNorm1d(hidden), Square()]
    model = SquareNet(*layers, nn.Linear(hidden or features, classes))
    model.target, model.arguments = "delta.models:he_cnn", arguments
    return model
