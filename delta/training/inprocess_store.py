"""What the training cloud of this process holds: data sets, jobs, and what their messages would weigh."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import torch
from google.protobuf.message import Message
from torch import Tensor, nn

from delta.bundle.store import serialise_weights
from delta.errors import RequestError
from delta.training.cloud import JobState, UploadChunk
from delta.training.cloud_trainer import StoredReleases
from delta.training.spec import DatasetSpec, JobSpec
from delta.wire import training as wire
from delta.wire.tensors import tensor_bytes

__all__ = ["HeldDataset", "HeldJob", "Meter"]

M = TypeVar("M", bound=Message)


@dataclass
class Meter:
    """What messages that are never sent would weigh.

    Attributes:
        up: to the cloud so far, bytes.
        down: from it, bytes.
    """

    up: int = 0
    down: int = 0

    def sent(self, message: M) -> M:
        """Count a message to the cloud."""
        self.up += message.ByteSize()
        return message

    def received(self, message: M) -> M:
        """Count a message from it."""
        self.down += message.ByteSize()
        return message

    def told(self, state: JobState) -> JobState:
        """Count a state from it."""
        self.received(wire.encode_state(state))
        return state


@dataclass
class HeldJob:
    """A job and what it left.

    Attributes:
        spec: what it trains.
        state: how far it has come.
        weights: a safetensors file, once it is done.
        logits: of the held-out records as they would travel, once it is done.
        open: whether an interactive session is in progress.
    """

    spec: JobSpec
    state: JobState = field(default_factory=lambda: JobState("waiting"))
    weights: bytes = b""
    logits: bytes = b""
    open: bool = False

    def keep(self, model: nn.Module, *, logits: Tensor) -> None:
        """Hold a trained model and its logits of held-out records `[h, classes]`."""
        self.logits = tensor_bytes(logits)
        self.weights = serialise_weights(dict(model.state_dict()))


@dataclass
class HeldDataset:
    """Stored releases, and the jobs on them."""

    spec: DatasetSpec
    jobs: dict[str, HeldJob] = field(default_factory=dict)
    _chunks: list[UploadChunk] = field(default_factory=list)
    stored: int = 0

    @property
    def releases(self) -> StoredReleases:
        """All that is stored, in upload order."""
        if len(self._chunks) != 1:
            bits = [torch.empty(0, self.spec.release.payload_bytes, dtype=torch.uint8)]
            labels, held_out = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.bool)]
            for chunk in self._chunks:
                bits.append(chunk.bits)
                labels.append(chunk.labels)
                held_out.append(chunk.held_out)
            self._chunks = [UploadChunk(0, torch.cat(bits), torch.cat(labels), torch.cat(held_out))]
        whole = self._chunks[0]
        return StoredReleases(whole.bits, whole.labels, whole.held_out)

    def append(self, chunk: UploadChunk) -> None:
        """Store what follows the prefix; what is there already must be the same.

        Raises:
            RequestError: a gap, or a release that differs from the stored one.
        """
        overlap = self.stored - chunk.first
        if overlap < 0:
            raise RequestError(
                f"releases from {chunk.first} on, but {self.stored} are stored; send those in between first"
            )
        overlap = min(overlap, len(chunk.bits))
        if overlap:
            own, here = self.releases, slice(chunk.first, chunk.first + overlap)
            if not (
                torch.equal(own.bits[here], chunk.bits[:overlap])
                and torch.equal(own.labels[here], chunk.labels[:overlap])
                and torch.equal(own.held_out[here], chunk.held_out[:overlap])
            ):
                raise RequestError(
                    f"releases from {chunk.first} on are stored and differ; upload them under another name"
                )
        rest = slice(overlap, None)
        if overlap < len(chunk.bits):
            self._chunks.append(
                UploadChunk(self.stored, chunk.bits[rest], chunk.labels[rest], chunk.held_out[rest])
            )
            self.stored += len(chunk.bits) - overlap
