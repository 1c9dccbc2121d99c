"""Linkability: can whoever sees two releases tell that they are of the same record, or of alike ones?"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from delta.attacks.membership.curves import Curve, curve_of
from delta.attacks.same_record import Link, fit_link
from delta.attacks.tap import Tap, generator_on
from delta.errors import ConfigError
from delta.release.config import InputSpec
from delta.training.fit import Progress, quiet

__all__ = [
    "CASES",
    "Known",
    "LinkCase",
    "Linkability",
    "check_enough",
    "linkability",
    "recompressed",
    "shifted",
]

CASES = (
    "same record, same id",
    "same record, another id",
    "re-encoded (JPEG, quality 75), another id",
    "shifted by 1 pixel, another id",
    "two records of one class",
    "two records of different classes",
)
"""What is told from two random records."""

_FPRS = (0.01,)
_FEWEST, _FEWEST_PAIRS = 40, 16
_VALUES = 2**26
"""Of the attacker's own observations that are fitted to: half a gigabyte, twice."""


@dataclass(frozen=True)
class Known:
    """Records.

    Attributes:
        images: `[n, c, h, w]` in [0, 1], on the device where everything runs.
        labels: `[n]` int64 on the CPU.
        ids: of the records.
    """

    images: Tensor
    labels: Tensor
    ids: tuple[str, ...]


@dataclass(frozen=True)
class LinkCase:
    """How well pairs of one kind are told from pairs of random records.

    Attributes:
        name: one of `CASES`.
        identical: share of the pairs whose two observations are equal, byte for byte.
        agreement: by how many values agree.
        likelihood: by the likelihood ratio that the attacker has fitted to pairs of its own of that kind.
    """

    name: str
    identical: float
    agreement: Curve
    likelihood: Curve

    @property
    def linkable(self) -> bool:
        """Whether either score tells such pairs beyond chance."""
        return self.agreement.better_than_guessing or self.likelihood.better_than_guessing

    def line(self) -> str:
        """In words that promise nothing."""
        if self.identical == 1:
            return f"{self.name}: always linkable, the bytes are the same"
        best = max(self.agreement, self.likelihood, key=lambda curve: curve.interval[0])
        low, high = best.interval
        figures = f"AUC {best.auc:.3f} ({low:.3f} to {high:.3f})"
        if self.linkable:
            return f"{self.name}: linkable, {figures}"
        return f"{self.name}: not linked beyond chance by these scores, {figures}; others may do better"

    def to_json(self) -> dict[str, Any]:
        """The figures."""
        return {
            "case": self.name,
            "identical_bytes": self.identical,
            "linkable": self.linkable,
            "pairs": self.agreement.positives,
            "random_pairs": self.agreement.negatives,
            "agreement": self.agreement.to_json(),
            "likelihood_ratio": self.likelihood.to_json(),
        }


@dataclass(frozen=True)
class Linkability:
    """All cases.

    Attributes:
        tap: what was seen.
        cases: one a kind of pair.
        records: victims.
        own: records that the attacker fitted its scores on.
        seed: of noise and pairs.
    """

    tap: str
    cases: tuple[LinkCase, ...]
    records: int
    own: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """The figures."""
        return {
            "tap": self.tap,
            "records": self.records,
            "auxiliary": self.own,
            "seed": self.seed,
            "cases": [case.to_json() for case in self.cases],
        }


def linkability(
    tap: Tap,
    auxiliary: Known,
    victims: Known,
    input: InputSpec,
    *,
    seed: int = 0,
    progress: Progress = quiet,
) -> Linkability:
    """Tell pairs of each kind from pairs of random records.

    No victim is in two pairs, so that intervals hold: the first half makes the pairs of a kind, the second half the
    random ones; a kind of which there are fewer than 16 pairs is left out. What is not the same record under the
    same id is asked about under another id, and has fresh noise.

    Args:
        tap: what the attacker sees.
        auxiliary: the attacker's own records.
        victims: those of others.
        input: preprocessing.
        seed: of noise and pairs.
        progress: told after every kind.

    Raises:
        ConfigError: fewer than 40 records of either.
    """
    check_enough(len(auxiliary.ids), len(victims.ids))
    world = _World(tap, input, seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(victims.ids), generator=generator)
    half, rest = order[: len(order) // 2], order[len(order) // 2 :]
    apart = _two_by_two(rest, generator)
    found = []
    for number, name in enumerate(CASES):
        pairs = _pairs(name, victims.labels, half, generator)
        own = _pairs(name, auxiliary.labels, torch.arange(len(auxiliary.ids)), generator)
        if len(pairs[0]) < _FEWEST_PAIRS or len(own[0]) < _FEWEST_PAIRS:
            continue
        ours, link = world.captured(victims, *pairs, case=name), world.fitted(auxiliary, *own, case=name)
        strangers = world.captured(victims, *apart, case=name)  # changed alike: that alone must tell nothing
        found.append(
            LinkCase(
                name=name,
                identical=float((ours[0] == ours[1]).flatten(1).all(1).double().mean()),
                agreement=curve_of(_agreement(*ours), _agreement(*strangers), fprs=_FPRS),
                likelihood=curve_of(link.ratio(*ours), link.ratio(*strangers), fprs=_FPRS),
            )
        )
        progress(f"linkability ({tap.name})", number + 1, len(CASES))
    return Linkability(tap.name, tuple(found), len(victims.ids), len(auxiliary.ids), seed)


def check_enough(auxiliary: int, victims: int) -> None:
    """Refuse too few records to make pairs of.

    Raises:
        ConfigError: fewer than 40 of the attacker or of the victims.
    """
    if min(auxiliary, victims) < _FEWEST:
        raise ConfigError(
            f"linkability needs {_FEWEST} records of the attacker and {_FEWEST} victims at least, got {auxiliary} "
            f"and {victims}"
        )


def recompressed(images: Tensor, *, quality: int = 75) -> Tensor:
    """Images `[n, c, h, w]` in [0, 1] through JPEG and back; each channel by itself unless there are one or three."""
    import numpy as np
    from PIL import Image

    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().permute(0, 2, 3, 1).numpy()
    channels = pixels.shape[3]
    groups = [slice(0, channels)] if channels in (1, 3) else [slice(c, c + 1) for c in range(channels)]
    drawn = np.empty_like(pixels)
    for index, picture in enumerate(pixels):
        for group in groups:
            part = picture[:, :, group]
            stream = io.BytesIO()
            Image.fromarray(part.squeeze(2) if part.shape[2] == 1 else part).save(
                stream, "JPEG", quality=quality
            )
            read = np.asarray(Image.open(stream))
            drawn[index, :, :, group] = read.reshape(part.shape)
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float().div_(255).to(images.device)


def shifted(images: Tensor) -> Tensor:
    """Images moved one pixel to the right; what that uncovers takes the colour of the edge."""
    return torch.cat([images[..., :1], images[..., :-1]], dim=3)


_CHANGES: dict[str, Callable[[Tensor], Tensor]] = {CASES[2]: recompressed, CASES[3]: shifted}


class _World:
    """Observations of victims by the real mechanism, and of the attacker's own records by its simulation."""

    def __init__(self, tap: Tap, input: InputSpec, seed: int) -> None:
        self._tap, self._input, self._seed = tap, input, seed

    def captured(self, data: Known, left: Tensor, right: Tensor, *, case: str) -> tuple[Tensor, Tensor]:
        """Observations of pairs, `[n, *shape]` each; the second under another id, but in the first case."""
        first, second = self._images(data, left, right, case)
        again = "" if case == CASES[0] else "#again"
        return (
            self._tap.capture(first, [data.ids[i] for i in left.tolist()], seed=self._seed),
            self._tap.capture(second, [data.ids[i] + again for i in right.tolist()], seed=self._seed),
        )

    def fitted(self, data: Known, left: Tensor, right: Tensor, *, case: str) -> Link:
        """The likelihood ratio of pairs of the attacker's own."""
        most = max(1024, _VALUES // math.prod(self._tap.shape))
        first, second = self._images(data, left[:most], right[:most], case)
        noise = generator_on(first.device, self._seed + 1)
        seen = [self._tap.simulate(x, looks=1, generator=noise) for x in (first, second)]
        return fit_link(seen[0].flatten(1), seen[1].flatten(1), seed=self._seed)

    def _images(self, data: Known, left: Tensor, right: Tensor, case: str) -> tuple[Tensor, Tensor]:
        change = _CHANGES.get(case)
        images, device = data.images, data.images.device
        first, second = images[left.to(device)], images[right.to(device)]
        if change is not None:
            second = change(second)
        return self._input.preprocess(first), self._input.preprocess(second)


def _pairs(name: str, labels: Tensor, among: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of pairs of a kind among some records, none of them in two pairs."""
    if name not in CASES[4:]:
        return among, among
    if name == CASES[5]:
        left, right = _two_by_two(among, generator)
        differ = labels[left] != labels[right]
        return left[differ], right[differ]
    present = labels[among].bincount().nonzero().flatten().tolist()
    pairs = [_two_by_two(among[labels[among] == label], generator) for label in present]
    return torch.cat([left for left, _ in pairs]), torch.cat([right for _, right in pairs])


def _two_by_two(among: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random disjoint pairs."""
    mixed = among[torch.randperm(len(among), generator=generator)]
    return mixed[: len(mixed) // 2], mixed[len(mixed) // 2 : len(mixed) // 2 * 2]


def _agreement(first: Tensor, second: Tensor) -> Tensor:
    """1 − mean |difference|/2 `[n]`: of bits as ±1, the share that is equal."""
    return 1 - (first - second).abs().flatten(1).double().mean(1) / 2
