"""The shape of one linear layer, as the manifest declares it, and its products."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from delta.config import Strict
from delta.methods.layers import LinearLayer

__all__ = ["LayerSpec", "exact_product", "plain_product"]

_CHUNK_BYTES = 2**26
"""Unfolded inputs that lie in memory at one time."""


class LayerSpec(Strict):
    """One convolution or linear layer.

    Attributes:
        name: of the module in the model.
        kind: which of the two.
        input_shape: of a record: `(c, h, w)`, or `(…, features)`.
        output_shape: of a record.
        kernel: height and width.
        stride: of the rows and of the columns.
        dilation: likewise.
        padding: zeros to the left, to the right, above and below.
        groups: of channels.
    """

    name: str
    kind: Literal["conv", "linear"]
    input_shape: tuple[int, ...] = Field(min_length=1)
    output_shape: tuple[int, ...] = Field(min_length=1)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = Field(default=1, ge=1)

    @classmethod
    def of(cls, layer: LinearLayer) -> LayerSpec:
        """The shape of a model's layer."""
        module = layer.module
        plain = cls(
            name=layer.name, kind="linear", input_shape=layer.input_shape, output_shape=layer.output_shape
        )
        if isinstance(module, nn.Linear):
            return plain
        (kernel_h, kernel_w), (dilation_h, dilation_w) = module.kernel_size, module.dilation
        above = below = left = right = 0
        if module.padding == "same":
            rows, columns = dilation_h * (kernel_h - 1), dilation_w * (kernel_w - 1)
            above, left = rows // 2, columns // 2
            below, right = rows - above, columns - left
        elif not isinstance(module.padding, str):
            above, left = (int(size) for size in module.padding)
            below, right = above, left
        shape = {
            "kind": "conv",
            "kernel": (kernel_h, kernel_w),
            "stride": (module.stride[0], module.stride[1]),
            "dilation": (dilation_h, dilation_w),
            "padding": (left, right, above, below),
            "groups": module.groups,
        }
        return plain.model_copy(update=shape)

    @property
    def inputs(self) -> int:
        """Values of one record's input."""
        return math.prod(self.input_shape)

    @property
    def outputs(self) -> int:
        """Values of one record's output."""
        return math.prod(self.output_shape)

    @property
    def channels_in(self) -> int:
        """Input channels or features."""
        return self.input_shape[0 if self.kind == "conv" else -1]

    @property
    def channels_out(self) -> int:
        """Output channels or features."""
        return self.output_shape[0 if self.kind == "conv" else -1]

    @property
    def taps(self) -> int:
        """Weights that a pair of an input and an output channel has."""
        return math.prod(self.kernel)

    @property
    def fan_in(self) -> int:
        """Products in one output value."""
        return self.channels_in // self.groups * self.taps

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the weight, as the module has it."""
        if self.kind == "linear":
            return (self.channels_out, self.channels_in)
        return (self.channels_out, self.channels_in // self.groups, *self.kernel)

    @property
    def macs(self) -> int:
        """A record."""
        return self.outputs * self.fan_in

    def spread(self, by_channel: Tensor) -> Tensor:
        """A value an output channel, `[channels_out]` → one an output value, `[outputs]`."""
        places = self.outputs // self.channels_out
        if self.kind == "conv":
            return by_channel.repeat_interleave(places)
        return by_channel.repeat(places)

    def places_last(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """`[n, size]`, a record being `shape` → `[n, channels, places]`."""
        if self.kind == "conv":
            return values.reshape(len(values), shape[0], -1)
        return values.reshape(len(values), -1, shape[-1]).transpose(1, 2)


def exact_product(spec: LayerSpec, weight: Tensor, x: Tensor) -> Tensor:
    """W·x of integers, exact by a fixed algorithm: the input unfolded, then one float64 matrix product a group.

    Nothing here is a float32, Winograd or FFT convolution. The caller has seen to it that Σ|w|·max|x| < 2⁵³.

    Args:
        spec: of the layer.
        weight: integers in float64, of `spec.weight_shape`.
        x: integers of any type, `[n, *input_shape]`.

    Returns:
        Integers in float64, `[n, *output_shape]`.
    """
    unfolded = 8 * spec.fan_in * spec.groups * max(1, spec.outputs // spec.channels_out)
    at_once = max(1, _CHUNK_BYTES // unfolded)
    return torch.cat([_product(spec, weight, part.to(weight)) for part in torch.split(x, at_once)])


def _product(spec: LayerSpec, weight: Tensor, x: Tensor) -> Tensor:
    if spec.kind == "linear":
        return x @ weight.T
    columns = _unfolded(spec, x).reshape(len(x), spec.groups, spec.fan_in, -1)
    products = weight.reshape(spec.groups, -1, spec.fan_in) @ columns
    return products.reshape(len(x), *spec.output_shape)


def _unfolded(spec: LayerSpec, x: Tensor) -> Tensor:
    x = nn.functional.pad(x, spec.padding) if any(spec.padding) else x
    if spec.kernel == (1, 1):
        return x[:, :, :: spec.stride[0], :: spec.stride[1]]
    return nn.functional.unfold(x, spec.kernel, dilation=spec.dilation, stride=spec.stride)


def plain_product(spec: LayerSpec, weight: Tensor, x: Tensor) -> Tensor:
    """W·x in int64 by PyTorch's own integer layers, no modulus: the slow oracle of `exact_product`.

    Args:
        spec: of the layer.
        weight: int64, of `spec.weight_shape`.
        x: int64, `[n, *input_shape]`.

    Returns:
        int64, `[n, *output_shape]`.
    """
    if spec.kind == "linear":
        return nn.functional.linear(x, weight)
    return nn.functional.conv2d(
        nn.functional.pad(x, spec.padding),
        weight,
        stride=spec.stride,
        dilation=spec.dilation,
        groups=spec.groups,
    )
