"""How much of an image a reconstruction shows: SSIM and PSNR, both with data range 1."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from delta.errors import ConfigError
from delta.models.similarity import smooth_ssim

__all__ = ["check_ssim", "psnr", "smooth_ssim", "ssim"]

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


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, `[n]`."""
    error = (images - reconstructions.clamp(0, 1)).square().flatten(1).mean(1)
    return -10 * error.clamp_min(1e-12).log10()
