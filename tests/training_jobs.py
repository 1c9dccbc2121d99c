"""A small data set of releases and a job on it, for tests of training clouds: nothing is trained to make them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from delta.bundle.manifest import Architecture, Manifest
from delta.release.config import (
    BasisConfig,
    Component,
    CropConfig,
    InputSpec,
    MessageConfig,
    Provenance,
    ReleaseConfig,
)
from delta.training.cloud import UploadChunk
from delta.training.cloud_trainer import StoredReleases, job_model
from delta.training.config import FitConfig
from delta.training.spec import DatasetSpec, JobSpec

CLASSES, SIZE, WIDTH = 3, 16, 4
RECORDS, HELD_OUT = 60, 12
DATASET, JOB = "0123456789abcdef" * 2, "fedcba9876543210" * 2


def release_config(*, size: int = SIZE, **changes: Any) -> ReleaseConfig:
    """A release of 1×size×size bits from records of that size."""
    part = Component(hash="0" * 64, provenance=Provenance(kind="data-independent"))
    fields: dict[str, Any] = {
        "input": InputSpec(shape=(1, size, size), mean=(0.5,), std=(0.5,)),
        "ir_shape": (WIDTH, size, size),
        "backbone": part,
        "basis": BasisConfig(kind="pca", rank=2, component=part),
        "crop": CropConfig(block=16, keep=8),
        "message": MessageConfig(map="channel-mean", shape=(1, size, size), component=part),
        "sigma": None,
    }
    return ReleaseConfig(**{**fields, **changes})


def dataset_spec(**changes: Any) -> DatasetSpec:
    return DatasetSpec(**{"release": release_config(), "classes": CLASSES, "records": RECORDS, **changes})


def job_spec(**changes: Any) -> JobSpec:
    fields: dict[str, Any] = {
        "architecture": Architecture(
            target="delta.models:resnet_small",
            arguments={"classes": CLASSES, "in_channels": 1, "width": WIDTH},
            split_at="layer1",
        ),
        "fit": FitConfig(epochs=2, batch=16),
        "seed": 7,
    }
    return JobSpec(**{**fields, **changes})


def stored_releases(
    *, records: int = RECORDS, held_out: int = HELD_OUT, payload_bytes: int = SIZE * SIZE // 8, seed: int = 0
) -> StoredReleases:
    """Random bits whose first byte tells the label."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 256, (records, payload_bytes), dtype=torch.uint8, generator=generator)
    hidden = torch.zeros(records, dtype=torch.bool)
    hidden[torch.randperm(records, generator=generator)[:held_out]] = True
    labels = bits[:, 0].long() % CLASSES
    return StoredReleases(bits, labels.masked_fill(hidden, 0), hidden)


def chunks_of(releases: StoredReleases, *, start: int = 0, stop: int | None = None) -> Iterator[UploadChunk]:
    """The releases from `start` to `stop`, sixteen a chunk."""
    end = len(releases.bits) if stop is None else stop
    for first in range(start, end, 16):
        part = slice(first, min(first + 16, end))
        yield UploadChunk(first, releases.bits[part], releases.labels[part], releases.held_out[part])


def manifest_of(
    dataset: DatasetSpec, job: JobSpec, *, weights_hash: str, name: str = "promoted", **changes: Any
) -> Manifest:
    """The manifest under which a trained job may be served."""
    fields: dict[str, Any] = {
        "name": name,
        "method": "delta",
        "input": dataset.release.input,
        "class_names": tuple(f"class {i}" for i in range(dataset.classes)),
        "architecture": job.architecture,
        "release": dataset.release,
        "logit_bound": 20.0,
        "cloud_weights_hash": weights_hash,
    }
    return Manifest.sealed(**{**fields, **changes})


LIKE = job_model(dataset_spec(), job_spec()).state_dict()
"""Weights of the job's model, untrained."""
