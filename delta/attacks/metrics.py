"""How much of an image a reconstruction shows: SSIM and PSNR, both with data range 1."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from delta.errors import ConfigError, InputError

__all__ = ["check_ssim", "psnr", "smooth_ssim", "ssim"]

_WINDOW, _WIDTH = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_MISSING = "SSIM needs torchmetrics; install the extra `attacks` or `demo`"


def check_ssim() -> None:
    """Refuse to begin work whose result could not be scored.

    Raises:
        ConfigError: torchmetrics is not installed.
    """
    if importlib.util.find_spec("torchmetrics") is None:
        raise ConfigError(_MISSING)


def ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity of each image, `[n]`: torchmetrics' default window, data range 1.

    Args:
        images: `[n, c, h, w]` in [0, 1].
        reconstructions: the same shape.

    Raises:
        ConfigError: torchmetrics is not installed.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError:
        raise ConfigError(_MISSING) from None
    values = structural_similarity_index_measure(
        reconstructions.clamp(0, 1), images, data_range=1.0, reduction="none"
    )
    return torch.as_tensor(values).flatten()


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


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, `[n]`."""
    error = (images - reconstructions.clamp(0, 1)).square().flatten(1).mean(1)
    return -10 * error.clamp_min(1e-12).log10()
