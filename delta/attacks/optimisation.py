"""The optimisation attack: search for the image that explains the bits, through the backbone that the attacker knows.

No training: the posterior of an image is the likelihood of what was seen times a prior of small total variation
(Rudin, Osher & Fatemi 1992) near to where the search began, and Adam climbs it. A bit b of a value m tells
b·ln Φ(m/σ) + (1−b)·ln Φ(−m/σ).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

from delta.attacks.messages import differentiable_messages
from delta.bundle.store import Bundle
from delta.errors import ConfigError
from delta.methods.delta.parts import load_private_parts
from delta.methods.whole import allowed_targets

__all__ = [
    "Climb",
    "Explanation",
    "IrExplanation",
    "ReleaseExplanation",
    "climbed",
    "total_variation",
    "tuned",
]

_RATES = (0.05, 0.2)
_SHARPEST, _BLUNTEST = 0.01, 1.0
"""σ that stands for none, at the end and at the start, in units of a message's root mean square.

At the end a true image must explain its own bits, and many of its values are a few hundredths of that root.
"""
_PRIORS = (
    *((0.0, 0.0), (1.0, 0.0), (10.0, 0.0), (1.0, 10.0)),
    *((0.0, 100.0), (0.0, 1000.0), (10.0, 1000.0), (0.0, 10_000.0)),
)
"""Weights of the prior that an attacker tries on records of its own: see `Climb`."""


class Explanation(Protocol):
    """How well an image explains what was seen of it."""

    def __call__(self, x: Tensor, observed: Tensor, *, looks: int, progress: float) -> Tensor:
        """Log-likelihood of each observation, up to a constant.

        Args:
            x: preprocessed records `[n, channels, height, width]`; gradients flow to them.
            observed: `[n, *shape]`.
            looks: observations behind each.
            progress: of the climb, from 0 to 1, for what is annealed.

        Returns:
            `[n]` float64.
        """
        ...


class ReleaseExplanation:
    """Of the bits of a release, as ±1 averaged over looks.

    Args:
        bundle: of method `delta`.
        allow: import targets that it may build.
    """

    def __init__(self, bundle: Bundle, *, allow: Sequence[str] = ()) -> None:
        if bundle.manifest.release is None:
            raise ConfigError("an optimisation attack needs a bundle of method 'delta'; attack another tap")
        self._release = bundle.manifest.release
        self._parts = load_private_parts(bundle, allowed=allowed_targets(bundle, allow))

    def __call__(self, x: Tensor, observed: Tensor, *, looks: int, progress: float) -> Tensor:
        """Without noise a σ falls to a small one: the steps of a sign have no slope to climb."""
        m = differentiable_messages(self._parts.to(x.device), self._release, x)
        sigma: float | Tensor | None = self._release.sigma
        if sigma is None:
            root = m.detach().square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
            sigma = root * _BLUNTEST * (_SHARPEST / _BLUNTEST) ** progress
        ones = looks * (observed.flatten(1).double() + 1) / 2
        scaled = m / sigma
        found = ones * torch.special.log_ndtr(scaled) + (looks - ones) * torch.special.log_ndtr(-scaled)
        likelihood: Tensor = found.sum(1)
        return likelihood


class IrExplanation:
    """Of an IR that was seen as it is: the positive control. Squared distance, in units of a hundredth of its power.

    Args:
        bundle: of method `delta`.
        allow: import targets that it may build.
    """

    def __init__(self, bundle: Bundle, *, allow: Sequence[str] = ()) -> None:
        self._backbone = load_private_parts(bundle, allowed=allowed_targets(bundle, allow)).backbone

    def __call__(self, x: Tensor, observed: Tensor, *, looks: int, progress: float) -> Tensor:
        """−‖φ(x) − seen‖² / 2s²."""
        gap = (self._backbone.to(x.device)(x) - observed).flatten(1).double().square()
        power = observed.flatten(1).double().square().mean(1, keepdim=True).clamp_min(1e-12)
        likelihood: Tensor = -(gap / (2 * 0.01 * power)).sum(1)
        return likelihood


def total_variation(images: Tensor) -> Tensor:
    """Anisotropic total variation of `[n, c, h, w]`: the absolute differences of neighbours, summed, `[n]`."""
    down = (images[:, :, 1:] - images[:, :, :-1]).abs().flatten(1).sum(1)
    across = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().flatten(1).sum(1)
    return down + across


@dataclass(frozen=True)
class Climb:
    """How hard the attack tries.

    Attributes:
        steps: of Adam.
        smooth: weight of the total variation, nats a unit.
        near: weight of the squared distance to the start, nats a unit.
        rate: of the steps, in logits of a pixel; it falls to 0.
    """

    steps: int = 300
    smooth: float = 1.0
    near: float = 0.0
    rate: float = _RATES[0]


def climbed(
    explain: Explanation,
    observed: Tensor,
    start: Tensor,
    *,
    preprocess: Callable[[Tensor], Tensor],
    climb: Climb,
    looks: int = 1,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """The images that explain best what was seen, `[n, c, h, w]` in [0, 1].

    Args:
        explain: the likelihood.
        observed: `[n, *shape]`.
        start: images to begin with, `[n, c, h, w]` in [0, 1].
        preprocess: of images to records.
        climb: how.
        looks: observations behind each row.
        told: steps done, and in all.
    """
    z = start.detach().clamp(0.02, 0.98).logit().requires_grad_(True)
    optimizer = torch.optim.Adam([z], lr=climb.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, climb.steps))
    with torch.enable_grad():
        for step in range(climb.steps):
            images = torch.sigmoid(z)
            likelihood = explain(
                preprocess(images), observed, looks=looks, progress=step / max(1, climb.steps - 1)
            )
            # A step of Adam does not depend on the loss's scale: each record climbs by itself.
            away = (images - start).square().flatten(1).sum(1)
            prior = climb.smooth * total_variation(images) + climb.near * away
            loss = (prior.double() - likelihood).sum()
            optimizer.zero_grad(set_to_none=True)
            (z.grad,) = torch.autograd.grad(loss, z)
            optimizer.step()
            schedule.step()
            told(step + 1, climb.steps)
    return torch.sigmoid(z).detach()


def tuned(
    explain: Explanation,
    observed: Tensor,
    images: Tensor,
    start: Tensor,
    score: Callable[[Tensor, Tensor], Tensor],
    *,
    preprocess: Callable[[Tensor], Tensor],
    climb: Climb,
    looks: int = 1,
) -> Climb:
    """The climb with the rate and the prior that do best on records whose images the attacker has.

    Args:
        explain: the likelihood.
        observed: of the attacker's own records, `[n, *shape]`.
        images: theirs, `[n, c, h, w]` in [0, 1].
        start: to begin with.
        score: of `(images, drawings)`, larger is better, `[n]`.
        preprocess: of images to records.
        climb: its steps.
        looks: observations behind each row.
    """
    found: list[tuple[float, Climb]] = []
    for (smooth, near), rate in product(_PRIORS, _RATES):
        tried = replace(climb, smooth=smooth, near=near, rate=rate)
        drawn = climbed(explain, observed, start, preprocess=preprocess, climb=tried, looks=looks)
        found.append((float(score(images, drawn).mean()), tried))
    return max(found, key=lambda one: one[0])[1]
