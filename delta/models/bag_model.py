"""A cloud model for shuffled releases: it reads a bag of patches, whatever their order.

Each patch passes a small convolutional network, and the patches look at each other in transformer layers without
positions (Vaswani et al. 2017, arXiv 1706.03762; sets: Lee et al. 2019, arXiv 1810.00825), before their mean is
classified. An order of patches changes no logit but for rounding.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from delta.errors import ModelError
from delta.models.resnet import initialise, is_size

__all__ = ["BagOfPatches", "PatchReader", "bag_of_patches"]

_LARGEST = {"classes": 1 << 16, "channels": 1 << 12, "patch": 64, "width": 512, "layers": 16}
"""Bounds on sizes, which may come from another machine."""
_HEADS = 4
_SIDE = 4  # of a patch's map at which it is halved no more


class PatchReader(nn.Module):
    """Patches one by one: `[n, channels, patch, patch] → [n, 4·width]`.

    Two 3×3 convolutions at the patch's own size, then one of stride 2 until a side has 4 values at most, at least
    once; where things lie inside a patch is kept.

    Args:
        channels: of a patch.
        patch: its side.
        width: channels of the first convolutions; later ones have twice as many.
    """

    def __init__(self, *, channels: int, patch: int, width: int) -> None:
        super().__init__()
        halvings = max(1, math.ceil(math.log2(patch / _SIDE))) if patch > 1 else 1
        steps, side, inputs = [], patch, channels
        for number in range(2 + halvings):
            outputs, stride = (width, 1) if number < 2 else (2 * width, 2)
            steps += [
                nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            side, inputs = -(-side // stride), outputs
        self.convolutions = nn.Sequential(*steps)
        self.token = nn.Linear(inputs * side * side, 4 * width)
        initialise(self)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches as ±1 → what is told of each."""
        token: Tensor = self.token(self.convolutions(patches).flatten(1))
        return token


class BagOfPatches(nn.Module):
    """Patches `[n, patches, channels, patch, patch] → logits [n, classes]`.

    Attributes:
        target: import path of the builder.
        arguments: the builder's arguments, plain JSON.
        channels: of a patch.
        patch: its side.
    """

    def __init__(self, *, classes: int, channels: int, patch: int, width: int, layers: int) -> None:
        """The patches' network, the layers in which they see each other, and the classifier.

        Args:
            classes: number of logits.
            channels: of a patch: k of the message.
            patch: its side.
            width: of the first convolutions; a patch is told in 4 times as many numbers.
            layers: of the transformer.

        Raises:
            ModelError: a size is out of range.
        """
        super().__init__()
        sizes = {
            "classes": classes,
            "channels": channels,
            "patch": patch,
            "width": width,
            "layers": layers,
        }
        wrong = [
            f"{name}={value!r} (1 to {_LARGEST[name]})"
            for name, value in sizes.items()
            if not is_size(value, most=_LARGEST[name])
        ]
        if wrong:
            raise ModelError(f"a bag of patches takes whole numbers in range, got {', '.join(wrong)}")
        self.target = "delta.models:bag_of_patches"
        self.arguments: dict[str, Any] = sizes
        self.channels, self.patch = channels, patch
        self.reader = PatchReader(channels=channels, patch=patch, width=width)
        self.together = patch_transformer(4 * width, layers=layers)
        self.norm = nn.LayerNorm(4 * width)
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches as ±1 → logits."""
        n, count = patches.shape[:2]
        tokens = self.reader(patches.flatten(0, 1)).view(n, count, -1)
        logits: Tensor = self.fc(self.norm(self.together(tokens).mean(1)))
        return logits


def patch_transformer(width: int, *, layers: int) -> nn.TransformerEncoder:
    """Pre-norm layers over patches `[n, patches, width]`, without positions and without dropout."""
    layer = nn.TransformerEncoderLayer(
        width, _HEADS, dim_feedforward=2 * width, dropout=0.0, batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def bag_of_patches(
    *, classes: int, channels: int, patch: int, width: int = 64, layers: int = 2
) -> BagOfPatches:
    """For shuffled releases: 83 M MACs on 16 patches of 1×8×8 at the default width. Arguments as for `BagOfPatches`."""
    return BagOfPatches(classes=classes, channels=channels, patch=patch, width=width, layers=layers)
