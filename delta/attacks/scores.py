"""What drawings are scored by: likeness, class, identity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from delta.attacks.classifier import Judge
from delta.attacks.metrics import psnr, ssim

__all__ = ["mean_and_error", "score_drawings"]

_BATCH = 500


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean and standard error of `[n]` values; the error of a single one is 0."""
    found = values.double()
    error = float(found.std()) / len(found) ** 0.5 if len(found) > 1 else 0.0
    return float(found.mean()), error


def score_drawings(
    images: Tensor, drawings: Tensor, labels: Tensor, judge: Judge, candidates: Tensor
) -> dict[str, Any]:
    """Every score of reconstructions.

    Args:
        images: the originals `[n, c, h, w]` in [0, 1].
        drawings: of the attacker, the same shape.
        labels: `[n]`.
        judge: the attacker's classifier.
        candidates: images for re-identification `[m, c, h, w]`; the originals come first.

    Raises:
        ConfigError: torchmetrics is not installed.
    """
    pairs = list(zip(torch.split(images, _BATCH), torch.split(drawings, _BATCH), strict=True))
    found: dict[str, Any] = {}
    for name, metric in (("ssim", ssim), ("psnr", psnr), ("perceptual", judge.distance)):
        found[name], found[f"{name}_se"] = mean_and_error(torch.cat([metric(a, b) for a, b in pairs]))
    found["class_accuracy"] = judge.accuracy(drawings, labels)
    known = min(len(drawings), len(candidates))
    again = judge.reidentified(drawings[:known], candidates, torch.arange(known))
    found["reidentification"] = again.to_json()
    return found
