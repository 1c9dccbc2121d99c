"""The reconstruction attack: a U-Net that draws the image from what a tap shows of it.

Learned message maps are fitted against it, too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from delta.errors import InputError

__all__ = ["UNet"]

_SMALLEST = 4
"""Pixels at which no further level is added."""
_WIDEST = 8
"""Times the first level's channels, at most."""


class _Block(nn.Module):
    """Two 3×3 convolutions and a shortcut: `[n, inputs, h, w] → [n, outputs, h, w]`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.act = nn.SiLU()
        self.shortcut: nn.Module = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm1(self.conv1(x)))
        out: Tensor = self.act(self.norm2(self.conv2(y)) + self.shortcut(x))
        return out


class UNet(nn.Module):
    """Observations `[n, *observation]` to images `[n, channels, height, width]` in [0, 1].

    Observations smaller than the image are read at their own size first, then brought to the image's by learned
    upsampling, and join the level of their size once more; larger ones are folded into channels. The last layer
    starts at zero, so that the drawing starts as the mean image, and what says nothing keeps giving it.

    Args:
        observation: `(channels, height, width)` of what the tap shows.
        mean: mean image of the attacker's own records, `[channels, height, width]` in [0, 1].
        centre: mean of the observations, a channel, `[channels]`.
        scale: their standard deviation, a channel, `[channels]`.
        width: channels of the first level.
    """

    mean_logit: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        observation: tuple[int, int, int],
        *,
        mean: Tensor,
        centre: Tensor | None = None,
        scale: Tensor | None = None,
        width: int = 48,
    ) -> None:
        super().__init__()
        channels, height, width_px = mean.shape
        if width < 4 or min(height, width_px) < _SMALLEST:
            raise InputError(
                f"the decoder takes images of {_SMALLEST}×{_SMALLEST} at least and a width of 4 at least, got "
                f"{height}×{width_px} and {width}"
            )
        k = observation[0]
        self.size = (height, width_px)
        self.register_buffer("mean_logit", mean.detach().clone().clamp(0.004, 0.996).logit())
        self.register_buffer("centre", torch.zeros(k) if centre is None else centre.detach().clone())
        self.register_buffer("scale", torch.ones(k) if scale is None else scale.detach().clone())
        levels = max(1, min(5, int(math.log2(min(height, width_px) / _SMALLEST))))
        sizes = [self.size]
        for _ in range(levels):
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        widths = [width * min(_WIDEST, 2**level) for level in range(levels + 1)]
        self.entry = _Entry(observation, self.size, width=width)
        joins = [self.entry.own_channels if size == self.entry.own_size else 0 for size in sizes]
        joins[0] = 0  # the entry itself
        self.down = nn.ModuleList(
            [_Block(widths[level] + joins[level], widths[level]) for level in range(levels)]
        )
        self.shrink = nn.ModuleList(
            [nn.Conv2d(widths[level], widths[level + 1], 3, stride=2, padding=1) for level in range(levels)]
        )
        self.middle = _Block(widths[-1] + joins[-1], widths[-1])
        self.grow = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[level + 1], widths[level], 2, stride=2)
                for level in reversed(range(levels))
            ]
        )
        self.up = nn.ModuleList([_Block(widths[level], widths[level]) for level in reversed(range(levels))])
        self.leave = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]
        self._joins = joins

    def forward(self, observed: Tensor) -> Tensor:
        """Observations to images."""
        x = (observed - self.centre[:, None, None]) / self.scale[:, None, None]
        own, y = self.entry(x)
        kept = []
        for level, (block, shrink) in enumerate(zip(self.down, self.shrink, strict=True)):
            y = block(torch.cat([y, own], dim=1) if self._joins[level] else y)
            kept.append(y)
            y = shrink(y)
        y = self.middle(torch.cat([y, own], dim=1) if self._joins[-1] else y)
        for grow, block in zip(self.grow, self.up, strict=True):
            like = kept.pop()
            y = grow(y)[:, :, : like.shape[2], : like.shape[3]]  # an odd size was rounded up
            y = block(y + like)  # a sum: half the work of a concatenation at that width
        return torch.sigmoid(self.mean_logit + self.leave(y).float())


class _Entry(nn.Module):
    """An observation of any size, at its own and at the image's: `→ [n, own, h, w], [n, width, height, width]`."""

    def __init__(self, observation: tuple[int, int, int], size: tuple[int, int], *, width: int) -> None:
        super().__init__()
        k, *found = observation
        self.fold = max(1, min(-(-found[0] // size[0]), -(-found[1] // size[1])))
        exact = found[0] % self.fold == 0 and found[1] % self.fold == 0
        self.folds: nn.Module = nn.PixelUnshuffle(self.fold) if exact else nn.Identity()
        if exact:
            k, found = k * self.fold**2, [side // self.fold for side in found]
        self.own_size = (found[0], found[1])
        self.size = size
        doublings = 0
        while all(side << (doublings + 1) <= full for side, full in zip(found, size, strict=True)):
            doublings += 1
        doublings = min(doublings, 5)
        channels = width * min(_WIDEST, 2**doublings)
        self.own_channels = channels
        self.read = nn.Sequential(nn.Conv2d(k, channels, 3, padding=1), nn.SiLU())
        if doublings:
            self.read.append(_Block(channels, channels))
        steps: list[nn.Module] = []
        for _ in range(doublings):
            narrower = max(width, channels // 2)
            steps += [nn.ConvTranspose2d(channels, narrower, 2, stride=2), nn.SiLU()]
            channels = narrower
        if channels != width:
            steps.append(nn.Conv2d(channels, width, 1))
        self.spread = nn.Sequential(*steps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        own = self.read(self.folds(x))
        full = self.spread(own)
        if tuple(full.shape[2:]) != self.size:
            full = nn.functional.interpolate(full, size=self.size, mode="bilinear", align_corners=False)
        return own, full
