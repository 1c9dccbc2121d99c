"""The typed, packed hot path: `Predict` and `PredictStream`."""

from __future__ import annotations

import asyncio
import time

from delta.errors import DeltaError, RequestError
from delta.methods.schema import PREDICT
from delta.wire.predict import (
    ChunkAnswer,
    PredictRequest,
    PredictResponse,
    PredictStreamRequest,
    PredictStreamResponse,
    check_bits,
)
from delta.wire.session import PROTOCOL_VERSION, Hello, Welcome, check_version, decode_binding
from delta.wire.status import encode_failure
from delta_server.answers import MESSAGE_SLACK
from delta_server.batcher import Batcher, Job
from delta_server.forms import Packed
from delta_server.models import HostedModel, ModelStore
from delta_server.stream import StreamSession, parse

__all__ = ["PredictSession", "predict"]


def _refusal(first_id: int, count: int, error: DeltaError) -> bytes:
    answer = ChunkAnswer(first_id=first_id, count=count, failure=encode_failure(error))
    return PredictStreamResponse(answers=[answer]).SerializeToString()


def _key(model: HostedModel) -> object:
    return (model.binding.model, model.binding.cloud_hash, PREDICT)


class PredictSession(StreamSession):
    """A session of `PredictStream`."""

    def encode(self, job: Job, outcome: bytes | DeltaError, cloud_ms: float) -> bytes:
        """A chunk's answer, or its failure."""
        if isinstance(outcome, DeltaError):
            return _refusal(job.sequence, job.records, outcome)
        answer = ChunkAnswer(first_id=job.sequence, count=job.records, logits=outcome, cloud_ms=cloud_ms)
        return PredictStreamResponse(answers=[answer]).SerializeToString()

    def _hello_of(self, raw: bytes) -> Hello | None:
        message: PredictStreamRequest = parse(PredictStreamRequest, raw)
        return message.hello if message.HasField("hello") else None

    def _bind(self, model: HostedModel, hello: Hello) -> Welcome:
        model.require_predict(hello.payload_bytes)
        return Welcome(
            protocol_version=PROTOCOL_VERSION,
            classes=model.classes,
            max_records=model.max_records,
            max_message_bytes=model.predict_bytes,
        )

    def _welcome(self, welcome: Welcome) -> bytes:
        return PredictStreamResponse(welcome=welcome).SerializeToString()

    def _drain_notice(self) -> bytes:
        return PredictStreamResponse(draining=True).SerializeToString()

    def _request(self, model: HostedModel, raw: bytes, deadline_ms: int) -> Job | bytes:
        chunk: PredictStreamRequest = parse(PredictStreamRequest, raw)
        try:
            if chunk.HasField("hello"):
                raise RequestError("a second Hello in one stream; open another stream instead")
            bits = check_bits(
                chunk.bits,
                count=chunk.count,
                payload_bytes=model.payload_bytes,
                max_records=model.max_records,
                pad_bits=model.pad_bits,
            )
            owner = self.promise(4 * model.classes * chunk.count + MESSAGE_SLACK)
        except DeltaError as error:
            return _refusal(chunk.first_id, chunk.count, error)
        allowed_s = min((chunk.deadline_ms or deadline_ms) / 1e3, self._config.max_deadline_s)
        return Job(
            owner=owner,
            model=model,
            op=PREDICT,
            payload=bits,
            form=Packed(model.payload_bytes),
            sequence=chunk.first_id,
            records=chunk.count,
            deadline=time.monotonic() + allowed_s,
            key=_key(model),
        )


class _Call:
    """The owner of a unary call's job."""

    def __init__(self) -> None:
        self.closed = False
        self.error: DeltaError | None = None
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def encode(self, job: Job, outcome: bytes | DeltaError, cloud_ms: float) -> bytes:
        if isinstance(outcome, DeltaError):
            self.error = outcome
            return b""
        return PredictResponse(logits=outcome, cloud_ms=cloud_ms).SerializeToString()

    def deliver(self, answer: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)


async def predict(raw: bytes, *, models: ModelStore, batcher: Batcher, deadline_s: float) -> bytes:
    """Serve one unary `Predict`.

    Args:
        raw: a serialised `PredictRequest`.
        models: the hosted models.
        batcher: which runs it.
        deadline_s: seconds that are left to the call.

    Raises:
        DeltaError: the request is refused or failed.
    """
    request: PredictRequest = parse(PredictRequest, raw)
    check_version(request.protocol_version, peer="client")
    model = models.bind(decode_binding(request.binding))
    model.require_predict(model.payload_bytes)
    bits = check_bits(
        request.bits,
        count=request.count,
        payload_bytes=model.payload_bytes,
        max_records=model.max_records,
        pad_bits=model.pad_bits,
    )
    call = _Call()
    job = Job(
        owner=call,
        model=model,
        op=PREDICT,
        payload=bits,
        form=Packed(model.payload_bytes),
        sequence=0,
        records=request.count,
        deadline=time.monotonic() + deadline_s,
        key=_key(model),
    )
    try:
        batcher.submit(job)
        answer = await call.answer
    finally:
        call.closed = True
    if call.error is not None:
        raise call.error
    return answer
