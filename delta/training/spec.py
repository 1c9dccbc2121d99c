"""What a training cloud is told: the data set of releases, and the job that trains on it. Nothing here is private."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from delta.bundle.manifest import Architecture
from delta.config import Strict
from delta.release.config import ReleaseConfig
from delta.training.config import Augmentation, FitConfig, LabelConfig, Precision

__all__ = ["DatasetSpec", "JobSpec", "label_bits"]


class DatasetSpec(Strict):
    """A data set of releases, as the cloud is told of it.

    Attributes:
        schema_version: of this message.
        release: the release configuration.
        classes: number of classes; their names stay private unless the model is promoted.
        records: releases in it, those of held-out records included.
        labels: how labels were disclosed: the cloud's loss corrects for randomized response.
    """

    schema_version: Literal[1] = 1
    release: ReleaseConfig
    classes: int = Field(ge=2, le=65_536)
    records: int = Field(ge=1, le=100_000_000)
    labels: LabelConfig = LabelConfig()


class JobSpec(Strict):
    """One training of a cloud model.

    Attributes:
        schema_version: of this message.
        architecture: how the cloud builds the model.
        fit: epochs, batch, schedule.
        augment: shifts and mirrors of the stored bits, in the cloud.
        label_smoothing: of the cloud's cross-entropy.
        precision: of the cloud's arithmetic.
        seed: of the model's start and of the order of records.
        steps: of an interactive job, fixed beforehand; none for one-shot, where the data set decides.
    """

    schema_version: Literal[1] = 1
    architecture: Architecture
    fit: FitConfig
    augment: Augmentation = "none"
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    precision: Precision = "float32"
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    steps: int | None = Field(default=None, ge=1, le=10**12)


def label_bits(classes: int) -> int:
    """Bits of a label on the wire: ⌈log₂ classes⌉."""
    return (classes - 1).bit_length()
