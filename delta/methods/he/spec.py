"""What a bundle of `he` says in its manifest: mode, ring and sizes. Both sides derive the rest from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from delta.config import Strict
from delta.methods.he.parameters import Ring

__all__ = ["Mode", "Patches", "Spec"]

Mode = Literal["network", "last-layer"]
Size = Annotated[int, Field(ge=1, le=1 << 20)]


class Patches(Strict):
    """The convolution in front: how records are cut into patches before they are encrypted (im2col).

    Attributes:
        channels: that it makes.
        kernel: height and width.
        stride: likewise.
        padding: likewise, with zeros.
        dilation: likewise.
    """

    channels: Size
    kernel: tuple[Size, Size]
    stride: tuple[Size, Size]
    padding: tuple[Annotated[int, Field(ge=0, le=1 << 20)], Annotated[int, Field(ge=0, le=1 << 20)]]
    dilation: tuple[Size, Size]

    def windows(self, size: Sequence[int]) -> int:
        """Patches of a record of `(height, width)`; 0 where not one fits."""
        count = 1
        for axis, length in enumerate(size):
            span = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            count *= max(0, (length + 2 * self.padding[axis] - span) // self.stride[axis] + 1)
        return count

    def values(self, channels: int) -> int:
        """Values of one patch of a record of so many channels."""
        return channels * self.kernel[0] * self.kernel[1]

    def of(self, x: Tensor) -> Tensor:
        """Records `[n, channels, h, w]` → `[n, values of a patch, windows]`."""
        return nn.functional.unfold(
            x, self.kernel, dilation=self.dilation, padding=self.padding, stride=self.stride
        )


class Spec(Strict):
    """Everything of an encrypted computation but its weights.

    Attributes:
        mode: `network`: all layers run encrypted; `last-layer`: the final linear layer alone.
        layer: of `last-layer`: the name of that layer in the model.
        ring: ring and modulus chain.
        integer_bits: of the logits, sign included; larger ones would wrap around.
        patches: of `network`: the convolution in front; none where the first layer is linear.
        widths: values in front of each linear layer, and the logits last; a square stands between any two layers.
    """

    mode: Mode
    layer: str = ""
    ring: Ring
    integer_bits: int = Field(ge=1)
    patches: Patches | None = None
    widths: tuple[Size, ...] = Field(min_length=2, max_length=32)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.mode == "last-layer") != bool(self.layer):
            raise ValueError("layer names the last layer of mode 'last-layer', and of no other mode")
        if self.mode == "last-layer" and (self.patches is not None or len(self.widths) != 2):
            raise ValueError("mode 'last-layer' has one linear layer and no patches")
        if self.ring.depth != depth_of(self.patches is not None, len(self.widths) - 1):
            raise ValueError("the ring's depth is not that of the layers")
        if self.ring.bits[0] < self.ring.precision + self.integer_bits:
            raise ValueError("the first prime is too small for the integer bits")
        return self

    @property
    def bound(self) -> float:
        """Logits of this magnitude and above cannot be told."""
        return 2.0 ** (self.integer_bits - 1)


def depth_of(convolves: bool, linears: int) -> int:
    """Multiplications in sequence: one a layer, and one a square between two layers."""
    layers = int(convolves) + linears
    return 2 * layers - 1
