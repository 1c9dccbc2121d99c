"""Bringing images of a data set to one size: padding for small greyscale ones, resampling for the rest."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from delta.data.records import Dataset, DataSplits
from delta.errors import DataError

__all__ = ["padded", "resized"]

_CHUNK = 512


def padded(pixels: Tensor, size: tuple[int, int], *, what: str) -> Tensor:
    """Images centred on black.

    Args:
        pixels: `[n, c, h, w]`.
        size: `(height, width)`, at least as large as the images.
        what: how a message names them.

    Returns:
        `[n, c, height, width]` of the same type.

    Raises:
        DataError: the images are larger than the size.
    """
    down, right = size[0] - pixels.shape[2], size[1] - pixels.shape[3]
    if down < 0 or right < 0:
        raise DataError(
            f"{what}: images of {pixels.shape[3]}×{pixels.shape[2]} do not fit into {size[1]}×{size[0]}"
        )
    return functional.pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2))


def resized(data: DataSplits, size: tuple[int, int]) -> DataSplits:
    """Both parts at `(height, width)`, by an antialiased bilinear filter; ids and labels stay."""
    if data.image_shape[1:] == size:
        return data
    return DataSplits(_resampled(data.train, size), _resampled(data.test, size))


def _resampled(data: Dataset, size: tuple[int, int]) -> Dataset:
    parts = []
    for chunk in torch.split(data.pixels, _CHUNK):
        image = functional.interpolate(chunk.to(torch.float32), size, mode="bilinear", antialias=True)
        is_bytes = chunk.dtype == torch.uint8
        parts.append(image.round_().clamp_(0, 255).to(torch.uint8) if is_bytes else image.clamp_(0, 1))
    return replace(data, pixels=torch.cat(parts))
