"""The two kinds of stream: packed predictions, and named tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from delta.errors import CloudAnswerError, CloudMismatchError, RequestError
from delta.methods.schema import TensorSpec, check_tensors
from delta.transport.base import Answer, Binding
from delta.wire.exchange import ExchangeRequest, ExchangeResponse
from delta.wire.predict import PredictStreamRequest, PredictStreamResponse, decode_logits
from delta.wire.services import EXCHANGE_SERVICE, INFERENCE_SERVICE, method_path
from delta.wire.session import Welcome, hello_message
from delta.wire.status import error_from_failure
from delta.wire.tensors import decode_named, decode_schema
from delta_client.connection import Dialect, Pending

__all__ = ["ExchangeDialect", "PredictDialect"]


class PredictDialect(Dialect):
    """Of `PredictStream`.

    Args:
        binding: what the session is bound to.
        payload_bytes: packed bytes a record.
        classes: logits a record that the private side expects; none to take the cloud's word.
        deadline_ms: the session's default deadline.
    """

    path = method_path(INFERENCE_SERVICE, "PredictStream")

    def __init__(
        self, binding: Binding, *, payload_bytes: int, classes: int | None, deadline_ms: int
    ) -> None:
        self._hello = hello_message(binding, payload_bytes=payload_bytes, deadline_ms=deadline_ms)
        self._classes = classes

    def hello(self) -> bytes:
        """Serialise the Hello."""
        return PredictStreamRequest(hello=self._hello).SerializeToString()

    def welcome(self, raw: bytes) -> Welcome | None:
        """The Welcome, its classes checked."""
        message = PredictStreamResponse.FromString(raw)
        if not message.HasField("welcome"):
            return None
        classes = message.welcome.classes
        if not classes or self._classes not in (None, classes):
            raise CloudMismatchError(
                f"classes differ: the cloud states {classes}, this side has {self._classes}; use the bundle "
                "that the cloud part was exported from"
            )
        return message.welcome

    def check(self, pending: Pending, welcome: Welcome) -> None:
        """Refuse more records than a message may hold."""
        if pending.records > welcome.max_records:
            raise RequestError(
                f"{pending.records} records in one request; the cloud takes at most {welcome.max_records}"
            )

    def answers(self, raw: bytes) -> tuple[Sequence[tuple[int, Any]], bool]:
        """Answers by first id."""
        message = PredictStreamResponse.FromString(raw)
        return [(answer.first_id, answer) for answer in message.answers], message.draining

    def outcome(self, pending: Pending, answer: Any, welcome: Welcome, size: int) -> Answer | Exception:  # noqa: ANN401
        """Logits of the right shape, or why not."""
        if answer.HasField("failure"):
            return error_from_failure(answer.failure)
        if answer.count != pending.records:
            return CloudAnswerError(
                f"the cloud answered for {answer.count} records, expected {pending.records}"
            )
        try:
            logits = decode_logits(answer.logits, count=answer.count, classes=welcome.classes)
        except CloudAnswerError as error:
            return error
        return Answer({"logits": logits}, answer.cloud_ms, len(pending.message), size)


class ExchangeDialect(Dialect):
    """Of `Exchange`; answers are checked against the schema that the cloud declares.

    Args:
        binding: what the session is bound to.
        deadline_ms: the session's default deadline.
    """

    path = method_path(EXCHANGE_SERVICE, "Exchange")

    def __init__(self, binding: Binding, *, deadline_ms: int) -> None:
        self._hello = hello_message(binding, payload_bytes=0, deadline_ms=deadline_ms)
        self._outputs: dict[str, dict[str, TensorSpec]] = {}

    def hello(self) -> bytes:
        """Serialise the Hello."""
        return ExchangeRequest(hello=self._hello).SerializeToString()

    def welcome(self, raw: bytes) -> Welcome | None:
        """The Welcome, its schemas kept."""
        message = ExchangeResponse.FromString(raw)
        if not message.HasField("welcome"):
            return None
        try:
            self._outputs = {op.name: decode_schema(op.outputs) for op in message.welcome.operations}
        except RequestError as error:
            raise CloudAnswerError(f"the cloud's welcome is not valid: {error}") from None
        return message.welcome

    def check(self, pending: Pending, welcome: Welcome) -> None:
        """Refuse a message that is too large."""
        if len(pending.message) > welcome.max_message_bytes:
            raise RequestError(
                f"{pending.op}: a request of {len(pending.message)} bytes; the cloud takes at most "
                f"{welcome.max_message_bytes}; send fewer records at a time"
            )

    def answers(self, raw: bytes) -> tuple[Sequence[tuple[int, Any]], bool]:
        """Answers by request id."""
        message = ExchangeResponse.FromString(raw)
        return [(answer.request_id, answer) for answer in message.answers], message.draining

    def outcome(self, pending: Pending, answer: Any, welcome: Welcome, size: int) -> Answer | Exception:  # noqa: ANN401
        """Tensors that match the schema, or why not."""
        if answer.HasField("failure"):
            return error_from_failure(answer.failure)
        try:
            tensors = decode_named(answer.tensors)
            check_tensors(tensors, self._outputs.get(pending.op, {}), what=f"{pending.op}: answer")
        except RequestError as error:
            return CloudAnswerError(str(error))
        return Answer(tensors, answer.cloud_ms, len(pending.message), size)
