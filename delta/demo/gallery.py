"""Pictures of some records for the report: what stayed, what the cloud got, and what an attacker drew."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from delta.demo.experiment import DemoResult, Row
from delta.release.packing import unpack_bits

__all__ = ["examples_of"]


@torch.inference_mode()
def examples_of(result: DemoResult, row: Row, count: int) -> list[dict[str, Any]]:
    """`count` records of a row, one a class as far as there are classes; the main row's with what stayed private.

    Returns:
        `original`, `seen` (the released bits, bit for bit) and `drawn` as PNG in base64, `matched`, `ssim` and
        `label`; of the main row also `principal` and `residual`.
    """
    chosen = _one_a_class(result.test.y, count)
    names = result.data.test.class_names
    examples = []
    for index in chosen.tolist():
        bits = unpack_bits(row.payloads[index : index + 1], row.stage.release.message.shape)[0].float()
        examples.append(
            {
                "original": _png(result.data.test.images[index]),
                "seen": _png(_tiles(bits)),
                "drawn": _png(row.leakage.drawings[index]),
                "matched": int(row.leakage.match.best[index]) == index,
                "ssim": float(row.leakage.each_ssim[index]),
                "label": names[int(result.test.y[index])],
            }
        )
    if row is result.rows["main"]:
        for example, stayed in zip(examples, _stayed(result, chosen), strict=True):
            example.update(stayed)
    return examples


def _stayed(result: DemoResult, chosen: Tensor) -> list[dict[str, str]]:
    """The principal part and the residual, mean over channels, of the chosen records."""
    private = result.private
    phi = private.backbone(result.test.x[chosen])
    decomposition = private.decomposer(phi)
    residual = private.decomposer.residual(phi, decomposition).mean(1)
    return [
        {"principal": _png(_tiles(principal)), "residual": _png(_scaled(left))}
        for principal, left in zip(decomposition.principal, residual, strict=True)
    ]


def _one_a_class(labels: Tensor, count: int) -> Tensor:
    """The first record of each class, then the next ones: `count` indices."""
    order = []
    for turn in range(count):
        for label in torch.unique(labels):
            of_class = (labels == label).nonzero().flatten()
            if turn < len(of_class):
                order.append(int(of_class[turn]))
    return torch.tensor(order[:count])


def _scaled(x: Tensor) -> Tensor:
    """To [0, 1] over the picture."""
    low, high = x.min(), x.max()
    return (x - low) / (high - low).clamp_min(1e-12)


def _tiles(channels: Tensor) -> Tensor:
    """Channels `[k, h, w]` side by side on a square grid, each scaled to [0, 1]."""
    side = 1
    while side * side < len(channels):
        side += 1
    _, h, w = channels.shape
    canvas = torch.ones(side * h, side * w)
    for index, channel in enumerate(channels):
        row, column = divmod(index, side)
        canvas[row * h : (row + 1) * h, column * w : (column + 1) * w] = _scaled(channel)
    return canvas


def _png(x: Tensor) -> str:
    """A picture in base64: `[h, w]`, `[1, h, w]` or `[3, h, w]` in [0, 1]."""
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8)
    if pixels.dim() == 3:
        pixels = pixels.permute(1, 2, 0) if len(pixels) == 3 else pixels[0]
    buffer = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
