"""Records as pictures, for whoever asks to see them: they are private (I6)."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from delta.attacks.metrics import smooth_ssim

__all__ = ["Example", "example_of", "tiles"]

_CHANNELS = 16
"""Of an observation, at most, that a picture shows."""


@dataclass(frozen=True)
class Example:
    """One record: PNG files in base64.

    Attributes:
        original: the record.
        seen: what the cloud saw of it.
        drawn: what the decoder made of that.
        matched: whether candidate matching found it; none where that was not tried.
        ssim: of the drawing.
    """

    original: str
    seen: str
    drawn: str
    matched: bool | None
    ssim: float

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def example_of(image: Tensor, observed: Tensor, drawn: Tensor, *, matched: bool | None) -> Example:
    """One record's pictures.

    Args:
        image: `[c, h, w]` in [0, 1].
        observed: `[k, h_o, w_o]`.
        drawn: `[c, h, w]` in [0, 1].
        matched: see `Example`.
    """
    return Example(
        original=_png(image),
        seen=_png(tiles(observed)),
        drawn=_png(drawn),
        matched=matched,
        ssim=float(smooth_ssim(image[None], drawn[None])),
    )


def tiles(channels: Tensor) -> Tensor:
    """The first channels of `[k, h, w]` side by side on a square grid `[1, H, W]`, each scaled to [0, 1]."""
    shown = channels[:_CHANNELS].float()
    k, h, w = shown.shape
    low, high = shown.amin((1, 2), keepdim=True), shown.amax((1, 2), keepdim=True)
    scaled = (shown - low) / (high - low).clamp_min(1e-12)
    side = math.ceil(math.sqrt(k))
    canvas = torch.ones(1, side * h, side * w, device=shown.device)
    for index in range(k):
        row, column = divmod(index, side)
        canvas[0, row * h : (row + 1) * h, column * w : (column + 1) * w] = scaled[index]
    return canvas


def _png(picture: Tensor) -> str:
    """`[1, h, w]` or `[3, h, w]` in [0, 1] as a PNG in base64; of other channels the mean."""
    if len(picture) not in (1, 3):
        picture = picture.mean(0, keepdim=True)
    pixels = (picture.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    array = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(array.contiguous().numpy()).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
