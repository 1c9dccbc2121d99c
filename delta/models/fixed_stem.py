"""A data-independent backbone: with it the privacy claim rests on no fit at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from delta.errors import ModelError

__all__ = ["FixedStem"]


class FixedStem(nn.Module):
    """A 3×3 convolution with seeded unit-norm filters and a leaky ReLU; nothing in it is learned.

    Shapes: `[b, in_channels, H, W] → [b, c, h, w]`, h and w being H and W divided by one common stride.
    """

    def __init__(
        self, *, in_channels: int, ir_shape: tuple[int, int, int], stride: int = 1, seed: int = 0
    ) -> None:
        super().__init__()
        if min(in_channels, *ir_shape, stride) < 1:
            raise ModelError(f"a fixed stem needs positive sizes, got {in_channels} channels to {ir_shape}")
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(ir_shape[0], in_channels, 3, 3, generator=generator, dtype=torch.float64)
        weight /= weight.flatten(1).norm(dim=1)[:, None, None, None]
        self.stride = stride
        self.register_buffer("weight", weight.float())

    def forward(self, x: Tensor) -> Tensor:
        """`[b, in_channels, H, W]` → the IR `[b, c, h, w]`."""
        y = nn.functional.conv2d(x, self.get_buffer("weight"), stride=self.stride, padding=1)
        return nn.functional.leaky_relu(y, 0.25)

    def extra_repr(self) -> str:
        """What the weights do not tell; the release configuration's hash covers it."""
        return f"stride={self.stride}, leaky=0.25"
