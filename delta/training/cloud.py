"""The TrainingCloud contract: what the private side asks of a cloud that trains, whoever carries the messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from delta.bundle.manifest import Manifest
from delta.training.spec import DatasetSpec, JobSpec

__all__ = ["InteractiveSession", "JobState", "TrainingCloud", "UploadChunk"]


@dataclass(frozen=True)
class UploadChunk:
    """Consecutive releases of one upload, in upload order.

    Attributes:
        first: position of the first one in the upload.
        bits: packed bits, `[n, B]` uint8.
        labels: as disclosed, `[n]` int64; 0 where held out.
        held_out: `[n]` bool; the label of a held-out record never leaves.
    """

    first: int
    bits: Tensor
    labels: Tensor
    held_out: Tensor


@dataclass(frozen=True)
class JobState:
    """How far a job has come, as the cloud says (I4: shown to the owner; `JobWatch` bounds it).

    Attributes:
        state: `waiting`, `running`, `done`, `failed` or `cancelled`; the last three are final, but that
            starting a failed job again lets it wait once more.
        step: optimiser steps done.
        steps: in all; 0 while unknown.
        loss: running mean of the cloud's own loss; none before the first step.
        message: why it failed, one line; empty otherwise.
    """

    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    step: int = 0
    steps: int = 0
    loss: float | None = None
    message: str = ""


class InteractiveSession(Protocol):
    """An interactive training in progress: one exchange a batch.

    The cloud keeps at least the last two states that it was asked to checkpoint, so that a private side that
    was killed between the cloud's checkpoint and its own finds the one it needs.
    """

    def exchange(self, bits: Tensor, labels: Tensor, *, update: bool, checkpoint: bool = False) -> Tensor:
        """Send a batch's bits `[n, B]` and disclosed labels `[n]`, get z_cloud `[n, classes]`, unchecked (I4).

        Args:
            bits: packed releases.
            labels: as disclosed; ignored unless `update`.
            update: whether the cloud takes a step on its own loss (logits are then those of the training-mode
                forward before the step); otherwise the model answers in eval mode and stays as it is.
            checkpoint: whether the cloud stores its state after this step, before it answers.

        Raises:
            CloudError: the cloud failed or the stream was cut.
        """
        ...


class TrainingCloud(Protocol):
    """A cloud that stores releases and trains on them.

    Contract (tests/contract/test_training_clouds.py runs it over every implementation): `dataset` and `job` are
    names of 32 lower-case hex digits that the private side chooses; creating and starting again with the same
    specification is no error and changes nothing (but that a failed job is tried again), with another one is a
    `CloudMismatchError`; what is another tenant's looks exactly as if it were not there (`CloudDeniedError`);
    failures are `CloudError` or `RequestError`; an upload goes on where the acknowledged prefix ends.
    """

    @property
    def bytes_up(self) -> int:
        """Serialised messages sent so far, bytes."""
        ...

    @property
    def bytes_down(self) -> int:
        """Serialised messages received so far, bytes."""
        ...

    def create(self, dataset: str, spec: DatasetSpec) -> int:
        """Make a data set, or find it again; returns how many of its releases are stored for good."""
        ...

    def upload(self, dataset: str, chunks: Iterable[UploadChunk]) -> int:
        """Send releases from the acknowledged prefix on; returns how many are stored for good."""
        ...

    def delete(self, dataset: str) -> None:
        """Delete a data set with its jobs; one that is not there is no error."""
        ...

    def start(self, dataset: str, job: str, spec: JobSpec) -> None:
        """Start a one-shot job on a complete data set.

        One that failed waits once more and goes on from what it has checkpointed; one that is done or cancelled
        stays so.
        """
        ...

    def watch(self, dataset: str, job: str) -> Iterator[JobState]:
        """States as they come, the last one final; may be called again after a cut."""
        ...

    def cancel(self, dataset: str, job: str) -> None:
        """Stop a job; what it has checkpointed is dropped with its data set. A finished job stays finished."""
        ...

    def held_out_logits(self, dataset: str, job: str, *, records: int) -> Tensor:
        """z_cloud of the held-out records in upload order, `[records, classes]` float32.

        Args:
            dataset: with the records.
            job: that is done.
            records: how many of those uploaded were held out; no more than their logits is taken.

        Raises:
            CloudAnswerError: not as many rows; whether they are finite is the caller's to check (I4).
        """
        ...

    def fetch(self, dataset: str, job: str, *, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The trained weights by name.

        Args:
            dataset: of the job.
            job: that is done.
            like: weights of the model that was trained: names, shapes and types; no more than they take is taken.

        Raises:
            CloudAnswerError: others came; whether they are finite is the caller's to check (I4).
        """
        ...

    def promote(self, dataset: str, job: str, manifest: Manifest) -> None:
        """Serve the trained model under a manifest whose `cloud_weights_hash` is that of its weights."""
        ...

    def interact(
        self, dataset: str, job: str, spec: JobSpec, *, step: int = 0
    ) -> AbstractContextManager[InteractiveSession]:
        """Open an interactive job at a step that the cloud has checkpointed; 0 starts it.

        `held_out_logits` is of one-shot jobs; `fetch` and `promote` work once all `spec.steps` are done.
        """
        ...
