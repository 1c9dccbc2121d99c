"""`python -m delta_server.training.interactive_worker`: one interactive session, in a process of its own.

Messages come in on standard input and go out on standard output, each after its length: `ready` or a failure
at first, then one answer a batch. It ends when its input does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO

from google.protobuf.message import DecodeError

from delta.errors import (
    CheckpointError,
    CloudMismatchError,
    CloudTrainingError,
    ConfigError,
    DeltaError,
    RequestError,
)
from delta.training.cloud_trainer import InteractiveTrainer
from delta.wire.status import encode_failure
from delta.wire.tensors import tensor_bytes
from delta.wire.training import (
    TrainInteractivelyRequest,
    TrainInteractivelyResponse,
    decode_exchange,
    max_upload_records,
)
from delta_server.log import log_to_stderr
from delta_server.training.process import FRAME
from delta_server.training.result import write_result
from delta_server.training.workplace import Workplace, explained, own_output

__all__ = ["ANSWER_BYTES", "main"]

ANSWER_BYTES = 1 << 22
"""Logits in one answer: wider ones are asked for in smaller batches."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the session that the arguments name; returns the exit status."""
    log_to_stderr()
    output = own_output()
    target = ""
    try:
        place = Workplace.of(arguments)
        target = place.job.architecture.target
        session = _Session(place)
    except Exception as error:
        _write(output, _refusal(_public(error, target)))
        return 1
    try:
        _write(output, TrainInteractivelyResponse(ready=True))
        for raw in _messages(sys.stdin.buffer):
            _write(output, session.answer(raw))
    except BrokenPipeError:
        return 1
    return 0


class _Session:
    """A trainer behind messages: whatever comes gets one answer."""

    def __init__(self, place: Workplace) -> None:
        place.occupy()
        self._place = place
        try:
            self._trainer = InteractiveTrainer(
                place.dataset,
                place.job,
                device=place.device,
                allowed=place.allowed,
                checkpoints=place.checkpoints(),
                step=place.step,
            )
        except CheckpointError:
            raise CloudMismatchError(
                f"the cloud has no checkpoint at step {place.step}; go on from one that was asked for, or from 0"
            ) from None
        most = max(2, ANSWER_BYTES // (4 * place.dataset.classes))
        self._max_records = min(most, max_upload_records(place.dataset.release.payload_bytes))

    def answer(self, raw: bytes) -> TrainInteractivelyResponse:
        start = time.perf_counter()
        try:
            logits = self._exchange(raw)
        except Exception as error:
            return _refusal(_public(error, self._place.job.architecture.target))
        return TrainInteractivelyResponse(logits=logits, cloud_ms=(time.perf_counter() - start) * 1e3)

    def _exchange(self, raw: bytes) -> bytes:
        try:
            message = TrainInteractivelyRequest.FromString(raw)
        except DecodeError:
            raise RequestError(
                "a message is no TrainInteractivelyRequest; send what this version defines"
            ) from None
        bits, labels = decode_exchange(message, spec=self._place.dataset, max_records=self._max_records)
        try:
            logits = self._trainer.exchange(
                bits, labels, update=message.update, checkpoint=message.checkpoint
            )
        except ConfigError as error:  # one record, or a step too many: the request's fault
            raise RequestError(str(error)) from None
        if message.update and self._trainer.finished:
            weights = dict(self._trainer.model.state_dict())
            write_result(self._place.folder, weights, steps=self._trainer.step)
        return tensor_bytes(logits)


def _public(error: Exception, target: str) -> DeltaError:
    """An error as the tenant may read it."""
    if isinstance(error, (CloudMismatchError, RequestError)):
        return error
    return CloudTrainingError(explained(error, target))


def _refusal(error: DeltaError) -> TrainInteractivelyResponse:
    return TrainInteractivelyResponse(failure=encode_failure(error))


def _messages(source: IO[bytes]) -> Iterator[bytes]:
    while len(head := source.read(FRAME.size)) == FRAME.size:
        (length,) = FRAME.unpack(head)
        data = source.read(length)
        if len(data) < length:
            return
        yield data


def _write(output: IO[bytes], message: TrainInteractivelyResponse) -> None:
    data = message.SerializeToString()
    output.write(FRAME.pack(len(data)) + data)
    output.flush()


if __name__ == "__main__":
    sys.exit(main())
