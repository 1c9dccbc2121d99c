"""Structural similarity as a loss: what the decoders of attacks are trained to raise, and learned maps to lower."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from delta.errors import InputError

__all__ = ["smooth_ssim"]

_WINDOW, _WIDTH = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def smooth_ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """The same number of each image, `[n]`, several times faster: what a decoder is trained to raise.

    The Gaussian window of 11×11 (σ = 1.5) is applied as a row and a column, over images whose edges are mirrored
    (Wang et al. 2004, IEEE Trans. Image Processing 13).

    Args:
        images: `[n, c, h, w]` in [0, 1], h and w at least 6.
        reconstructions: the same shape.

    Raises:
        InputError: the images are smaller than the window.
    """
    n, c, h, w = images.shape
    reach = _WINDOW // 2
    if min(h, w) <= reach:
        raise InputError(f"SSIM's window needs images of {reach + 1}×{reach + 1} at least, got {h}×{w}")
    place = torch.arange(_WINDOW, device=images.device, dtype=torch.float32) - reach
    window = torch.exp(-place.square() / (2 * _WIDTH**2))
    window = window / window.sum()
    x, y = images.float(), reconstructions.float()
    maps = torch.cat([x, y, x * x, y * y, x * y]).reshape(5 * n * c, 1, h, w)
    maps = pad(maps, (reach,) * 4, mode="reflect")
    smooth = conv2d(conv2d(maps, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
    mean_x, mean_y, xx, yy, xy = smooth.view(5, n, -1).unbind()
    variances = (xx - mean_x * mean_x).clamp_min(0) + (yy - mean_y * mean_y).clamp_min(0)
    means = mean_x * mean_x + mean_y * mean_y
    value = (2 * mean_x * mean_y + _C1) * (2 * (xy - mean_x * mean_y) + _C2)
    return (value / ((means + _C1) * (variances + _C2))).mean(1)
