"""A shuffled release as a bag: patches mirrored and sorted alike, so that equal bags look equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from delta.attacks.release_tap import ReleaseTap
from delta.attacks.tap import Tap, generator_on
from delta.errors import ConfigError
from delta.release.layout import cut, join

__all__ = ["BagTap"]


class BagTap(Tap):
    """Observations of a shuffled release in an order that a record's patches give themselves.

    Each patch is mirrored so that a fixed random projection of it is least, and the patches are sorted by their number
    of ones, then by that projection. Noise upsets the order where patches are alike.

    Args:
        inner: the tap on a shuffled release.

    Raises:
        ConfigError: its layout is kept.
    """

    adds_up = False

    def __init__(self, inner: ReleaseTap) -> None:
        if inner.patch is None:
            raise ConfigError("this release keeps its layout: it is no bag of patches")
        self.name, self.shape, self.noisy = inner.name, inner.shape, inner.noisy
        self._inner, self._patch = inner, inner.patch
        k, patch = self.shape[0], inner.patch
        weights = torch.rand(k, patch, patch, generator=generator_on(torch.device("cpu"), 0))
        self._weights = (
            weights.double() / weights.numel()
        )  # a projection below 1: the number of ones comes first

    def simulate(self, x: Tensor, *, looks: int, generator: torch.Generator) -> Tensor:
        """Simulated bags, sorted."""
        return self.sorted(self._inner.simulate(x, looks=looks, generator=generator))

    def capture(
        self, x: Tensor, ids: Sequence[str], *, looks: int = 1, fresh: bool = True, seed: int = 0
    ) -> Tensor:
        """Real payloads, sorted."""
        return self.sorted(self._inner.capture(x, ids, looks=looks, fresh=fresh, seed=seed))

    def sorted(self, observed: Tensor) -> Tensor:
        """Observations `[n, k, h, w]`, each its own bag in order."""
        patches = cut(observed, self._patch)
        best, chosen = self._projected(patches), patches
        if self._inner.release.layout.mirror:
            for axes in ((-1,), (-2,), (-1, -2)):
                turned = patches.flip(axes)
                found = self._projected(turned)
                less = found < best
                best = torch.where(less, found, best)
                chosen = torch.where(less[:, :, None, None, None], turned, chosen)
        order = (chosen.flatten(2).double().sum(2) + best).argsort(dim=1, stable=True)
        rows = torch.arange(len(observed), device=observed.device)[:, None]
        return join(chosen[rows, order], (observed.shape[2], observed.shape[3]))

    def _projected(self, patches: Tensor) -> Tensor:
        found: Tensor = (patches.double() * self._weights.to(patches.device)).sum((2, 3, 4))
        return found
