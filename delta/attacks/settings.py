"""What a run of the attacks does, and the records that it does it with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from delta.bundle.store import Bundle
from delta.config import Strict
from delta.data.records import DataSplits
from delta.errors import ConfigError

__all__ = ["ATTACKS", "DRAWING", "SLOW_RECORDS", "AttackRecords", "AttackSettings", "as_unit_interval"]

ATTACKS = (
    "matching",
    "labels",
    "decoder",
    "cgan",
    "optimisation",
    "jigsaw",
    "membership",
    "label-inference",
    "attributes",
    "linkability",
)
_USUAL = ATTACKS[:3]
DRAWING = ("decoder", "cgan", "optimisation", "jigsaw")
"""Those that draw the victims' images."""
_CANDIDATES = (1000, 50_000)
_VICTIMS = 1000
_LOOKS = (1, 5, 20)
SLOW_RECORDS = 4000
"""Of the attacker, or candidates, where a tap runs the method itself on the CPU."""


class AttackSettings(Strict):
    """How the attacks are run.

    Attributes:
        attacks: among `ATTACKS`.
        taps: what is attacked; empty for all of the bundle's.
        candidates: images that matching chooses from; empty for 1,000 and 50,000, or as many as there are.
        observations: looks at a record, each under fresh noise; empty for 1, 5 and 20, or 1 of a tap that is slow.
        patch: match as if the layout were cut into patches of this size and shuffled; none for what the release says.
        epochs: of the decoder, of the conditional GANs, and of the networks that read labels and attributes.
        width: of the first level of decoder and GANs.
        batch: pairs a step of theirs.
        searched: victims of the optimisation attack, which searches for each image anew.
        steps: of that search.
        auxiliary: the attacker's own records, from the training set; none for all of them, and 4,000 at most where a
            tap is slow.
        victims: test records attacked; none for 1,000 or all that there are.
        classifier_epochs: of the attacker's classifier.
        shadows: models that membership inference is calibrated on.
        pool: training records that retrained models draw their halves from; none for all.
        examples: records in the report, as pictures.
        seed: of every random choice.
        device: where it all runs.
    """

    attacks: tuple[str, ...] = _USUAL
    taps: tuple[str, ...] = ()
    candidates: tuple[int, ...] = ()
    observations: tuple[int, ...] = ()
    patch: int | None = Field(default=None, ge=1)
    epochs: int = Field(default=30, ge=1, le=10_000)
    width: int = Field(default=48, ge=4, le=1024)
    batch: int = Field(default=128, ge=2, le=65_536)
    searched: int = Field(default=64, ge=1)
    steps: int = Field(default=300, ge=1, le=100_000)
    auxiliary: int | None = Field(default=None, ge=2)
    victims: int | None = Field(default=None, ge=1)
    classifier_epochs: int = Field(default=10, ge=1, le=10_000)
    shadows: int = Field(default=16, ge=4, le=1024)
    pool: int | None = Field(default=None, ge=8)
    examples: int = Field(default=0, ge=0, le=1000)
    seed: int = Field(default=0, ge=0)
    device: str = "cpu"

    def looks(self, *, slow: bool) -> tuple[int, ...]:
        """How many looks at a record, of a tap with fresh noise."""
        return self.observations or ((1,) if slow else _LOOKS)

    @model_validator(mode="after")
    def _lists_make_sense(self) -> Self:
        unknown = [name for name in self.attacks if name not in ATTACKS]
        if unknown or not self.attacks:
            raise ValueError(
                f"unknown attack {', '.join(unknown) or '(none)'}; there are {', '.join(ATTACKS)}"
            )
        if self.observations and min(self.observations) < 1:
            raise ValueError("observations must be numbers of looks, each at least 1")
        if self.candidates and min(self.candidates) < 2:
            raise ValueError("candidates must be numbers of images to choose from, each at least 2")
        for name in ("attacks", "taps", "candidates", "observations"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name} names one twice")
        return self


@dataclass(frozen=True)
class AttackRecords:
    """Whose images are whose.

    Attributes:
        auxiliary: the attacker's own images `[m, c, h, w]` in [0, 1], on the device.
        auxiliary_labels: their classes.
        victims: images attacked `[n, c, h, w]`, none of them the attacker's.
        labels: their classes, on the CPU.
        ids: of the victims.
        pool: images that matching chooses from, uint8 or float, on the CPU: the victims first.
        candidates: how many of them, in each round of matching.
        notes: what was capped, in words.
    """

    auxiliary: Tensor
    auxiliary_labels: Tensor
    victims: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    pool: Tensor
    candidates: tuple[int, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, bundle: Bundle, data: DataSplits, settings: AttackSettings, device: torch.device
    ) -> AttackRecords:
        """Choose them.

        Raises:
            ConfigError: the data are not the bundle's in shape or classes, or hold too few records.
        """
        manifest = bundle.manifest
        if data.image_shape != manifest.input.shape or len(data.class_names) != len(manifest.class_names):
            raise ConfigError(
                f"the bundle takes records of {_shape(manifest.input.shape)} in {len(manifest.class_names)} "
                f"classes, the data are {_shape(data.image_shape)} in {len(data.class_names)}; give the data that "
                "it was made for"
            )
        train, test = len(data.train), len(data.test)
        notes = []
        victims = _asked("victims", settings.victims, test, default=_VICTIMS, what="test records")
        own = _asked("auxiliary records", settings.auxiliary, train, default=train, what="training records")
        candidates = settings.candidates
        if not candidates:
            candidates = tuple(c for c in _CANDIDATES if c <= train + test)
            if len(candidates) < len(_CANDIDATES):
                candidates = tuple(sorted({*candidates, train + test}))
                notes.append(
                    f"the data hold {train + test:,} records: matching chooses from no more than that"
                )
        if max(candidates) > train + test:
            raise ConfigError(
                f"{max(candidates):,} candidates are asked for, and the data hold {train + test:,} records; ask for "
                f"at most {train + test:,}"
            )
        chosen = (
            data.test.limited(victims, seed=settings.seed)
            if victims >= len(data.class_names)
            else (data.test.subset(range(victims)))
        )
        auxiliary = (
            data.train.limited(own, seed=settings.seed)
            if own >= len(data.class_names)
            else (data.train.subset(range(own)))
        )
        taken = set(chosen.ids)
        others = [i for i, name in enumerate(data.test.ids) if name not in taken]
        rest = data.test.subset(others)
        pool = torch.cat([d.pixels for d in (chosen, rest, data.train)])[: max(*candidates, len(chosen))]
        return cls(
            auxiliary=auxiliary.images.to(device),
            auxiliary_labels=auxiliary.labels.to(device),
            victims=chosen.images.to(device),
            labels=chosen.labels,
            ids=chosen.ids,
            pool=pool,
            candidates=candidates,
            notes=tuple(notes),
        )

    def slow(self, settings: AttackSettings) -> Tensor:
        """The attacker's images for a tap that is too slow to observe all of them."""
        return self.auxiliary if settings.auxiliary is not None else self.auxiliary[:SLOW_RECORDS]


def as_unit_interval(pixels: Tensor) -> Tensor:
    """Pixels, uint8 or float, as images in [0, 1]."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def _asked(name: str, count: int | None, there: int, *, default: int, what: str) -> int:
    if count is None:
        return min(default, there)
    if count > there:
        raise ConfigError(f"{count:,} {name} are asked for, and the data hold {there:,} {what}")
    return count


def _shape(shape: tuple[int, int, int]) -> str:
    return "×".join(map(str, shape))
