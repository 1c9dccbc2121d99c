"""Generated images of any shape: seeded 1/f noise with a pattern a class, for runs where no data set is at hand.

They show that a configuration works at its full size, such as 224×224; their accuracies say nothing about photos.
"""

from __future__ import annotations

import re

import torch

from delta.data.records import Dataset, DataSplits, hash_seed
from delta.decomposition.basis import synthetic_images
from delta.errors import DataError

__all__ = ["is_generated", "load_generated"]

_SPEC = re.compile(r"generated:(\d+)x(\d+)x(\d+)x(\d+)(?::(\d+))?")
_RECORDS, _CHUNK = 2000, 256
_STRENGTH = 0.6  # of the class's pattern beside noise of variance 1


def is_generated(spec: str) -> bool:
    """Whether a source is one of generated images."""
    return spec.startswith("generated:")


def load_generated(spec: str, *, seed: int = 0) -> DataSplits:
    """Records for `generated:CLASSESxCHANNELSxHEIGHTxWIDTH`, or with `:RECORDS` behind it (2,000 by default).

    A fifth as many test records are made as training records.

    Raises:
        DataError: the source is malformed, or out of range.
    """
    found = _SPEC.fullmatch(spec)
    classes, channels, height, width = (int(part) for part in found.groups()[:4]) if found else (0,) * 4
    records = int(found.group(5) or _RECORDS) if found else 0
    if not (
        2 <= classes <= 1000 and 1 <= channels <= 64 and 4 <= min(height, width) <= max(height, width) <= 1024
    ):
        raise DataError(
            f"data {spec!r} is not valid: write generated:CLASSESxCHANNELSxHEIGHTxWIDTH such as "
            "generated:10x3x224x224, or with :RECORDS behind it"
        )
    if not 5 * classes <= records <= 100_000:
        raise DataError(
            f"data {spec!r}: {records} records; give {5 * classes} to 100000, five a class at least"
        )
    shape = (channels, height, width)
    patterns = synthetic_images(classes, shape, hash_seed(seed, 0))
    return DataSplits(
        _part(shape, patterns, records, hash_seed(seed, 1), seed),
        _part(shape, patterns, max(classes, records // 5), hash_seed(seed, 2), seed),
    )


def _part(
    shape: tuple[int, int, int], patterns: torch.Tensor, records: int, stream: int, seed: int
) -> Dataset:
    classes = len(patterns)
    labels = torch.arange(records) % classes
    labels = labels[torch.randperm(records, generator=torch.Generator().manual_seed(stream))]
    parts = []
    for start in range(0, records, _CHUNK):
        chosen = labels[start : start + _CHUNK]
        noise = synthetic_images(len(chosen), shape, hash_seed(stream, start))
        image = noise + _STRENGTH * patterns[chosen]
        parts.append((image * 36 + 128).round_().clamp_(0, 255).to(torch.uint8))
    return Dataset.of(
        name="generated",
        pixels=torch.cat(parts),
        labels=labels,
        class_names=[f"pattern-{index}" for index in range(classes)],
        seed=seed,
    )
