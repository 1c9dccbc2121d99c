"""The geometry of one convolution: all that either side needs to run it on any part of its input."""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from delta.config import Strict
from delta.errors import ModelError
from delta.methods.layers import LinearLayer

__all__ = ["Geometry"]

_Size = Annotated[int, Field(ge=1, le=1 << 16)]
_Pad = Annotated[int, Field(ge=0, le=1 << 16)]


class Geometry(Strict):
    """A convolution without its weights and bias; everything here is linear in the input and in the weights.

    Attributes:
        input: `(c, h, w)` of a record.
        channels: that come out, o.
        kernel: `(k_h, k_w)`.
        stride, padding, dilation: down and across; padding is of zeros, the same on both ends.
        groups: of channels.
    """

    input: tuple[_Size, _Size, _Size]
    channels: _Size
    kernel: tuple[_Size, _Size]
    stride: tuple[_Size, _Size]
    padding: tuple[_Pad, _Pad]
    dilation: tuple[_Size, _Size]
    groups: _Size

    @classmethod
    def of(cls, layer: LinearLayer) -> Self:
        """The geometry of a convolution in a model.

        Raises:
            ModelError: it pads one end more than the other; the text names it.
        """
        conv = layer.module
        if not isinstance(conv, nn.Conv2d):
            raise ModelError(f"layer {layer.name!r} is no nn.Conv2d")
        kernel, dilation = _pair(conv.kernel_size), _pair(conv.dilation)
        if isinstance(conv.padding, str):
            spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
            if conv.padding == "same" and any(span % 2 for span in spans):
                raise ModelError(
                    f"layer {layer.name!r} pads one end more than the other; give it an odd kernel, or padding "
                    "in numbers"
                )
            padding = tuple(span // 2 if conv.padding == "same" else 0 for span in spans)
        else:
            padding = _pair(conv.padding)
        return cls(
            input=(layer.input_shape[0], layer.input_shape[1], layer.input_shape[2]),
            channels=conv.out_channels,
            kernel=kernel,
            stride=_pair(conv.stride),
            padding=(padding[0], padding[1]),
            dilation=dilation,
            groups=conv.groups,
        )

    @property
    def weight(self) -> tuple[int, int, int, int]:
        """Shape of the weights, `(o, c / groups, k_h, k_w)`."""
        return (self.channels, self.input[0] // self.groups, *self.kernel)

    @property
    def output(self) -> tuple[int, int, int]:
        """Shape of a record's answer, `(o, h', w')`."""
        height, width = (
            (size + 2 * pad - d * (k - 1) - 1) // step + 1
            for size, pad, d, k, step in zip(
                self.input[1:], self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return (self.channels, height, width)

    @property
    def macs(self) -> int:
        """Of the whole convolution, a record."""
        return math.prod(self.output) * math.prod(self.weight[1:])

    @property
    def full_rank(self) -> int:
        """The highest rank that a record's `c × (h·w)` matrix can have."""
        return min(self.input[0], self.input[1] * self.input[2])

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """`[n, c, h, w]` to `[n, o, h', w']`, without bias."""
        return functional.conv2d(
            x, weight, None, self.stride, self.padding, self.dilation, groups=self.groups
        )

    def patches(self, x: Tensor) -> Tensor:
        """What each output position reads, `[n, j, h, w]` to `[n, j·k_h·k_w, h'·w']`."""
        if self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0):
            return x.flatten(2)
        return functional.unfold(x, self.kernel, self.dilation, self.padding, self.stride)

    def gradients(self, gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Of the input `[n, c, h, w]` and of the weights, from that of the answer.

        Args:
            gradient: `[n, o, h', w']`.
            x: the input, `[n, c, h, w]`.
            weight: `[o, c / groups, k_h, k_w]`.
        """
        dx, dw = self._backward(gradient, x, weight, of_input=True)
        return dx, dw

    def weight_gradient(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The second of `gradients` alone."""
        dw: Tensor = self._backward(gradient, x, weight, of_input=False)[1]
        return dw

    def _backward(self, gradient: Tensor, x: Tensor, weight: Tensor, *, of_input: bool) -> Any:  # noqa: ANN401
        stride, padding, dilation = list(self.stride), list(self.padding), list(self.dilation)
        wanted = [of_input, True, False]
        backward = torch.ops.aten.convolution_backward
        found = backward(
            gradient, x, weight, None, stride, padding, dilation, False, [0, 0], self.groups, wanted
        )
        return found[:2]


def _pair(sizes: tuple[int, ...] | int) -> tuple[int, int]:
    return (sizes, sizes) if isinstance(sizes, int) else (sizes[0], sizes[1])
