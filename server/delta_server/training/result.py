"""What a finished job leaves in its folder: the weights, the logits of held-out records, and the mark of both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from delta.bundle.store import serialise_weights
from delta.config import Strict
from delta.errors import CloudStorageError, InputError
from delta.files import write_whole
from delta.wire.tensors import tensor_bytes

__all__ = ["WEIGHTS", "JobResult", "read_logits", "read_result", "read_weights", "write_result"]

WEIGHTS = "weights.safetensors"
_LOGITS, _DONE = "logits.safetensors", "done.json"


class JobResult(Strict):
    """The mark of a finished job, written last.

    Attributes:
        weights_hash: SHA-256 in hex of the safetensors file.
        size: of that file, bytes.
        steps: optimiser steps that were done.
        loss: running mean of the cloud's own loss at the end, if it is known and finite.
    """

    weights_hash: str
    size: int
    steps: int = Field(ge=0)
    loss: float | None = None


def write_result(
    folder: Path,
    weights: dict[str, Tensor],
    *,
    steps: int,
    loss: float | None = None,
    logits: Tensor | None = None,
) -> None:
    """Write a job's result, the mark last.

    Args:
        folder: of the job.
        weights: by name.
        steps: optimiser steps that were done.
        loss: running mean at the end.
        logits: of the held-out records, `[h, classes]`; none for an interactive job.

    Raises:
        CloudStorageError: it cannot be written.
    """
    data = serialise_weights(weights)
    mark = JobResult(weights_hash=hashlib.sha256(data).hexdigest(), size=len(data), steps=steps, loss=loss)
    try:
        (folder / _DONE).unlink(
            missing_ok=True
        )  # an interactive job may be done once more, from a checkpoint
        write_whole(folder / WEIGHTS, data)
        if logits is not None:
            write_whole(folder / _LOGITS, save({"logits": logits.contiguous()}))
        write_whole(folder / _DONE, mark.model_dump_json().encode())
    except (OSError, InputError):
        raise CloudStorageError("the cloud has no room for the result of the training") from None


def read_result(folder: Path) -> JobResult | None:
    """The mark of a finished job; none while there is none that can be read."""
    try:
        return JobResult.model_validate_json((folder / _DONE).read_bytes())
    except (OSError, ValidationError):
        return None


def read_weights(folder: Path, *, piece_bytes: int) -> Iterator[bytes]:
    """The weights file in pieces."""
    with (folder / WEIGHTS).open("rb") as file:
        while piece := file.read(piece_bytes):
            yield piece


def read_logits(folder: Path, *, piece_bytes: int) -> Iterator[bytes]:
    """Logits in upload order, float32, little-endian; whole rows a piece."""
    with safe_open(folder / _LOGITS, framework="pt") as file:
        rows = file.get_slice("logits")
        count, classes = rows.get_shape()
        step = max(1, piece_bytes // (4 * classes))
        for start in range(0, count, step):
            yield tensor_bytes(rows[start : start + step])
