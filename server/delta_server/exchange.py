"""The generic path: any operation of any method over `Exchange`."""

from __future__ import annotations

import time
from collections.abc import Mapping

from torch import Tensor

from delta.errors import DeltaError, RequestError, UnknownMethodError
from delta.methods.schema import Operation, check_tensors
from delta.wire.exchange import ExchangeAnswer, ExchangeRequest, ExchangeResponse
from delta.wire.session import PROTOCOL_VERSION, Hello, Welcome
from delta.wire.status import encode_failure
from delta.wire.tensors import decode_named, encode_named, encode_schema
from delta_server.answers import answer_bytes
from delta_server.batcher import Job
from delta_server.forms import Named
from delta_server.models import HostedModel
from delta_server.stream import StreamSession, parse

__all__ = ["ExchangeSession"]

_NAMED = Named()


class ExchangeSession(StreamSession):
    """A session of `Exchange`."""

    def encode(self, job: Job, outcome: Mapping[str, Tensor] | DeltaError, cloud_ms: float) -> bytes:
        """A request's answer, or its failure."""
        if isinstance(outcome, DeltaError):
            return _refusal(job.sequence, outcome)
        try:  # the schema does not bound every answer
            self._check_size(job.op, sum(t.numel() * t.element_size() for t in outcome.values()))
        except RequestError as error:
            return _refusal(job.sequence, error)
        answer = ExchangeAnswer(request_id=job.sequence, tensors=encode_named(outcome), cloud_ms=cloud_ms)
        return ExchangeResponse(answers=[answer]).SerializeToString()

    def _hello_of(self, raw: bytes) -> Hello | None:
        message: ExchangeRequest = parse(ExchangeRequest, raw)
        return message.hello if message.HasField("hello") else None

    def _bind(self, model: HostedModel, hello: Hello) -> Welcome:
        return Welcome(
            protocol_version=PROTOCOL_VERSION,
            max_message_bytes=model.max_message_bytes,
            operations=[encode_schema(name, op) for name, op in model.half.operations.items()],
        )

    def _welcome(self, welcome: Welcome) -> bytes:
        return ExchangeResponse(welcome=welcome).SerializeToString()

    def _drain_notice(self) -> bytes:
        return ExchangeResponse(draining=True).SerializeToString()

    def _request(self, model: HostedModel, raw: bytes, deadline_ms: int) -> Job | bytes:
        request: ExchangeRequest = parse(ExchangeRequest, raw)
        name = request.operation
        try:
            if request.HasField("hello"):
                raise RequestError("a second Hello in one stream; open another stream instead")
            operation = model.half.operations.get(name)
            if operation is None:
                raise UnknownMethodError(
                    f"no operation {name[:64]!r}; this model offers {sorted(model.half.operations)}"
                )
            tensors = decode_named(request.tensors)
            sizes = check_tensors(tensors, operation.inputs, what=f"{name}: input")
            size = answer_bytes(operation, sizes, bound=self._config.exchange_message_bytes)
            self._check_size(name, size)
            owner = self.promise(size)
        except DeltaError as error:
            return _refusal(request.request_id, error)
        allowed_s = min((request.deadline_ms or deadline_ms) / 1e3, self._config.max_deadline_s)
        batchable = operation.batchable and bool(tensors)
        return Job(
            owner=owner,
            model=model,
            op=name,
            payload=tensors,
            form=_NAMED,
            sequence=request.request_id,
            records=next(iter(tensors.values())).shape[0] if batchable else 1,
            deadline=time.monotonic() + allowed_s,
            key=_key(model, name, operation, tensors) if batchable else None,
        )

    def _check_size(self, op: str, size: int) -> None:
        limit = self._config.exchange_message_bytes
        if size > limit:
            raise RequestError(
                f"{op}: an answer of {size} bytes; this server sends at most {limit}; ask for fewer records at a "
                "time, or the operator may raise exchange_message_bytes"
            )


def _key(model: HostedModel, name: str, operation: Operation, tensors: Mapping[str, Tensor]) -> object:
    """Requests share a call if all their sizes beside the records' number are equal."""
    shapes = tuple(tuple(tensors[key].shape[1:]) for key in operation.inputs)
    return (model.binding.model, model.binding.cloud_hash, name, shapes)


def _refusal(request_id: int, error: DeltaError) -> bytes:
    answer = ExchangeAnswer(request_id=request_id, failure=encode_failure(error))
    return ExchangeResponse(answers=[answer]).SerializeToString()
