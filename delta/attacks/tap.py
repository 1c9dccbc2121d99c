"""A tap: what an attacker sees of a record, as a tensor; and the two controls.

The attacker is whoever runs the cloud. It knows the mechanism, the private side's weights and records like the
victims', and not the noise key. So it runs the mechanism itself on records of its own, with fresh noise every
time, and learns from the pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from delta.bundle.store import Bundle
from delta.methods.delta.parts import load_private_parts
from delta.methods.whole import allowed_targets

__all__ = ["RandomBitsTap", "RawInputTap", "RawIrTap", "Tap", "generator_on", "look_ids"]

_BATCH = 256


def generator_on(device: torch.device, seed: int) -> torch.Generator:
    """A seeded generator of a device's own random numbers."""
    return torch.Generator(device=device).manual_seed(seed)


def look_ids(ids: Sequence[str], look: int) -> list[str]:
    """The record ids under which the same records are asked about once more."""
    return list(ids) if look == 0 else [f"{name}#look-{look}" for name in ids]


class Tap(ABC):
    """What one place on the way to the cloud shows of a record.

    Attributes:
        name: as reports and `--taps` have it.
        shape: of one observation, `(channels, height, width)`.
        noisy: whether two looks at a record may differ; else further ones show nothing new.
        adds_up: whether the mean of several looks says what they say together.
        in_loop: whether the attacker can afford to run the mechanism anew in every training step.
    """

    name: str
    shape: tuple[int, int, int]
    noisy: bool = False
    adds_up: bool = True
    in_loop: bool = True

    @abstractmethod
    def simulate(self, x: Tensor, *, looks: int, generator: torch.Generator) -> Tensor:
        """The attacker runs the mechanism on records of its own, with fresh noise in every call.

        Several looks are averaged: the sum of independent bits of one law holds all that they tell.

        Args:
            x: preprocessed records `[n, channels, height, width]`.
            looks: observations a record, each under fresh noise.
            generator: on x's device.

        Returns:
            `[n, *shape]` float32 on x's device.
        """

    @abstractmethod
    def capture(
        self, x: Tensor, ids: Sequence[str], *, looks: int = 1, fresh: bool = True, seed: int = 0
    ) -> Tensor:
        """What the real private half sends for the victims. It stays in this process.

        Args:
            x: preprocessed records `[n, channels, height, width]`.
            ids: of the records.
            looks: how often each is asked about; what is seen is averaged.
            fresh: each look under another record id, which is a new release; else the same id again, which the
                stored bytes answer.
            seed: of the victims' noise key, so that a run can be repeated.

        Returns:
            `[n, *shape]` float32 on x's device.
        """

    def templates(self, x: Tensor) -> Tensor:
        """What the attacker computes of candidate records to match observations against, `[n, d]`."""
        found = [
            self.simulate(part, looks=1, generator=generator_on(x.device, 0)).flatten(1)
            for part in torch.split(x, _BATCH)
        ]
        return torch.cat(found)

    def scores(self, observed: Tensor, templates: Tensor, *, looks: int) -> Tensor:
        """How well each candidate explains each observation: the log-likelihood under Gaussian errors.

        Args:
            observed: `[n, d]`.
            templates: `[m, d]`.
            looks: observations behind each row.

        Returns:
            `[n, m]` float64, larger is better, up to a constant a row.
        """
        near = templates.double()
        found: Tensor = observed.double() @ near.T - near.square().sum(1) / 2
        return found


class RawInputTap(Tap):
    """The record itself, as the attacks' positive control where a method does not split the model.

    Args:
        shape: of a record.
    """

    name = "raw-input"

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def simulate(self, x: Tensor, *, looks: int, generator: torch.Generator) -> Tensor:
        """The record itself."""
        return x.float()

    def capture(
        self, x: Tensor, ids: Sequence[str], *, looks: int = 1, fresh: bool = True, seed: int = 0
    ) -> Tensor:
        """The record itself."""
        return x.float()


class RawIrTap(Tap):
    """φ(x) as it is: the positive control. An attack that fails here is too weak to tell anything elsewhere.

    Args:
        bundle: of method `delta`.
        allow: import targets that it may build.
    """

    name = "raw-ir"

    def __init__(self, bundle: Bundle, *, allow: Collection[str] = ()) -> None:
        self._backbone = load_private_parts(bundle, allowed=allowed_targets(bundle, allow)).backbone
        channels, height, width = bundle.manifest.input.shape
        with torch.no_grad():
            _, *found = self._backbone(torch.zeros(2, channels, height, width)).shape
        self.shape = (found[0], found[1], found[2])

    @torch.no_grad()
    def simulate(self, x: Tensor, *, looks: int, generator: torch.Generator) -> Tensor:
        """φ(x)."""
        self._backbone.to(x.device)
        return torch.cat([self._backbone(part).float() for part in torch.split(x, _BATCH)])

    def capture(
        self, x: Tensor, ids: Sequence[str], *, looks: int = 1, fresh: bool = True, seed: int = 0
    ) -> Tensor:
        """φ(x)."""
        return self.simulate(x, looks=1, generator=generator_on(x.device, seed))


class RandomBitsTap(Tap):
    """Fair bits that know nothing of the record: the negative control. What scores here is the attack's prior.

    Args:
        shape: of one observation.
    """

    name = "random-bits"
    noisy = True

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def simulate(self, x: Tensor, *, looks: int, generator: torch.Generator) -> Tensor:
        """Means of ±1."""
        total = torch.zeros(len(x), *self.shape, device=x.device)
        for _ in range(looks):
            total += torch.randint(0, 2, total.shape, generator=generator, device=x.device)
        return total.mul_(2 / looks).sub_(1)

    def capture(
        self, x: Tensor, ids: Sequence[str], *, looks: int = 1, fresh: bool = True, seed: int = 0
    ) -> Tensor:
        """Means of ±1 of another stream than the attacker's; without `fresh`, the same bits again."""
        # Training draws from its own seeds: this one must not be among them.
        return self.simulate(x, looks=looks if fresh else 1, generator=generator_on(x.device, seed ^ 0x5EED))
