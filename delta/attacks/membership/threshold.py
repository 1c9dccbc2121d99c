"""Attacks that need no other model: whose loss is low, and whose label survives small changes, was trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from delta.errors import InputError

__all__ = ["label_only_scores", "loss_scores", "views_of"]


def loss_scores(loss: Tensor) -> Tensor:
    """−loss `[n]` (Yeom, Giacomelli, Fredrikson & Jha 2018, arXiv 1709.01604)."""
    return -loss.double()


def label_only_scores(kept: Tensor) -> Tensor:
    """How many of a record's views are answered with its label, `[n]` float64.

    The attacker sees labels alone, of the image and of shifted and mirrored ones (Choquette-Choo, Tramèr, Carlini &
    Papernot 2021, arXiv 2007.14321). A right answer to the image itself counts as much as all other views together:
    most of what labels tell lies in it.

    Args:
        kept: whether each view kept the label, as a share of the draws, `[views, n]`; the image is the first one.
    """
    return kept.double().sum(0) + (len(kept) - 1) * kept[0].double()


def views_of(images: Tensor, *, reach: int = 2, mirror: bool = True) -> list[Tensor]:
    """The image and its views, `[n, c, h, w]` each: every shift by |rows| + |columns| ≤ reach, and the mirror image.

    What a shift uncovers takes the colour of the edge.

    Args:
        images: `[n, c, h, w]`, the first view.
        reach: in pixels.
        mirror: left to right; a mirrored digit is none.

    Raises:
        InputError: the images are not larger than the reach.
    """
    _, _, height, width = images.shape
    if reach < 0 or min(height, width) <= reach:
        raise InputError(f"views shifted by {reach} pixels need larger images than {height}×{width}")
    views = [images]
    padded = torch.nn.functional.pad(images, (reach,) * 4, mode="replicate") if reach else images
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            if 0 < abs(down) + abs(right) <= reach:
                top, left = reach + down, reach + right
                views.append(padded[:, :, top : top + height, left : left + width])
    return [*views, images.flip(3)] if mirror else views
