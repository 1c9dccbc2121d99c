"""Attributes of an image that are not the task's label: what else a release may give away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

__all__ = ["Attribute", "attributes_of"]

_GROUPS: Mapping[tuple[str, ...], tuple[str, tuple[str, ...], frozenset[str]]] = MappingProxyType(
    {
        (
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ): (
            "vehicle or animal",
            ("vehicle", "animal"),
            frozenset({"bird", "cat", "deer", "dog", "frog", "horse"}),
        ),
        tuple("0123456789"): ("odd or even", ("even", "odd"), frozenset("13579")),
    }
)
"""Coarse groups of known classes: the attribute's name, its two values, and the classes of the second."""


@dataclass(frozen=True)
class Attribute:
    """A question about a record.

    Attributes:
        name: as reports have it.
        values: possible answers.
        of: images `[n, c, h, w]` in [0, 1] and labels `[n]` → answers `[n]` int64 on the images' device.
    """

    name: str
    values: tuple[str, ...]
    of: Callable[[Tensor, Tensor], Tensor]


def attributes_of(class_names: Sequence[str], images: Tensor) -> list[Attribute]:
    """The questions that make sense for a data set; thresholds are fitted to the attacker's own images.

    The coarse group of the classes, where it is known; brightness above the median; of images in colour the
    quartile of the mean colour's hue; of grey ones a stroke thicker than the median.

    Args:
        class_names: one a class.
        images: the attacker's own, `[n, c, h, w]` in [0, 1].
    """
    found = []
    known = _GROUPS.get(tuple(class_names))
    if known is not None:
        name, values, second = known
        groups = torch.tensor([int(each in second) for each in class_names])
        found.append(
            Attribute(name, values, lambda some, labels: groups.to(some.device)[labels.to(some.device)])
        )
    found.append(_above("brightness", ("dark", "bright"), _brightness, images))
    if images.shape[1] == 3:
        cuts = torch.quantile(_hue(images), torch.tensor([0.25, 0.5, 0.75], device=images.device))
        quarters = tuple(f"hue quartile {number}" for number in (1, 2, 3, 4))
        found.append(
            Attribute("hue", quarters, lambda some, _: torch.bucketize(_hue(some), cuts.to(some.device)))
        )
    elif images.shape[1] == 1:
        found.append(_above("stroke thickness", ("thin", "thick"), _thickness, images))
    return found


def _above(
    name: str, values: tuple[str, str], measure: Callable[[Tensor], Tensor], images: Tensor
) -> Attribute:
    middle = float(measure(images).median())
    return Attribute(name, values, lambda some, _: (measure(some) > middle).long())


def _brightness(images: Tensor) -> Tensor:
    """Mean of all values, `[n]`."""
    return images.flatten(1).mean(1)


def _hue(images: Tensor) -> Tensor:
    """Hue of the mean colour as an angle in (−π, π], `[n]`; red is 0."""
    red, green, blue = images.mean((2, 3)).unbind(1)
    return torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue)


def _thickness(images: Tensor) -> Tensor:
    """Twice the ink over the total variation, `[n]`: a stroke's width in pixels, whatever its length."""
    down = (images[:, :, 1:] - images[:, :, :-1]).abs().flatten(1).sum(1)
    across = (images[..., 1:] - images[..., :-1]).abs().flatten(1).sum(1)
    return 2 * images.flatten(1).sum(1) / (down + across).clamp_min(1e-6)
