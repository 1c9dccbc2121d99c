"""An interactive training with the cloud of this process."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from delta.errors import CloudTrainingError, CloudUnavailableError, ConfigError, DeltaError, RequestError
from delta.training.cloud import JobState
from delta.training.cloud_trainer import InteractiveTrainer
from delta.training.inprocess_store import HeldJob, Meter
from delta.training.spec import DatasetSpec
from delta.wire import training as wire
from delta.wire.tensors import tensor_bytes

__all__ = ["InProcessSession"]


class InProcessSession:
    """One interactive job in progress; see `delta.training.cloud.InteractiveSession`.

    Args:
        trainer: the cloud's half.
        spec: of the data set.
        entry: the job, marked as open until the session is closed.
        meter: counts what the messages would weigh.
    """

    def __init__(self, trainer: InteractiveTrainer, spec: DatasetSpec, entry: HeldJob, meter: Meter) -> None:
        self._trainer = trainer
        self._spec = spec
        self._entry = entry
        self._meter = meter
        self._closed = False
        entry.open = True
        if trainer.finished:  # it goes on from its last step
            self._note()

    def exchange(self, bits: Tensor, labels: Tensor, *, update: bool, checkpoint: bool = False) -> Tensor:
        """One batch; see the contract."""
        if self._closed:
            raise CloudUnavailableError("the session is closed; open another one")
        limit = wire.max_upload_records(self._spec.release.payload_bytes)
        message = self._meter.sent(
            wire.encode_exchange(
                bits, labels, classes=self._spec.classes, update=update, checkpoint=checkpoint
            )
        )
        own_bits, own_labels = wire.decode_exchange(message, spec=self._spec, max_records=limit)
        start = time.perf_counter()
        try:
            logits = self._trainer.exchange(own_bits, own_labels, update=update, checkpoint=checkpoint)
        except ConfigError as error:
            raise RequestError(str(error)) from None
        except DeltaError as error:
            raise CloudTrainingError(str(error)) from None
        if update:
            self._note()
        self._meter.received(
            wire.TrainInteractivelyResponse(
                logits=tensor_bytes(logits), cloud_ms=(time.perf_counter() - start) * 1e3
            )
        )
        return logits

    def close(self) -> None:
        """Let another session of the job be opened; idempotent."""
        if not self._closed:
            self._closed = True
            self._trainer.close()
            self._entry.open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _note(self) -> None:
        step, steps = self._trainer.step, self._trainer.steps
        if self._trainer.finished:
            self._entry.keep(self._trainer.model, logits=torch.empty(0, self._spec.classes))
        self._entry.state = JobState("done" if self._trainer.finished else "running", step, steps)
