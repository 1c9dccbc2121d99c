"""What a request and its answer weigh on the wire, for transports that send none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from delta.methods.schema import PREDICT
from delta.transport.base import Binding
from delta.wire.exchange import ExchangeAnswer, ExchangeRequest, ExchangeResponse
from delta.wire.predict import ChunkAnswer, PredictStreamRequest, PredictStreamResponse
from delta.wire.session import PROTOCOL_VERSION, Welcome, hello_message
from delta.wire.tensors import encode_named, tensor_bytes

__all__ = ["answer_bytes", "handshake_bytes", "request_bytes"]


def request_bytes(op: str, tensors: Mapping[str, Tensor], *, sequence: int) -> int:
    """Serialised bytes of the message that carries a request.

    Args:
        op: name of the operation.
        tensors: its inputs.
        sequence: first record's number in the session, or the request's.
    """
    if _is_typed(op, tensors, "bits", torch.uint8):
        bits = tensors["bits"]
        return PredictStreamRequest(
            first_id=sequence, count=bits.shape[0], bits=tensor_bytes(bits)
        ).ByteSize()
    return ExchangeRequest(request_id=sequence, operation=op, tensors=encode_named(tensors)).ByteSize()


def answer_bytes(op: str, tensors: Mapping[str, Tensor], *, sequence: int, cloud_ms: float) -> int:
    """Serialised bytes of the message that carries an answer."""
    if _is_typed(op, tensors, "logits", torch.float32):
        logits = tensors["logits"]
        data = tensor_bytes(logits)
        chunk = ChunkAnswer(first_id=sequence, count=logits.shape[0], logits=data, cloud_ms=cloud_ms)
        return PredictStreamResponse(answers=[chunk]).ByteSize()
    answer = ExchangeAnswer(request_id=sequence, tensors=encode_named(tensors), cloud_ms=cloud_ms)
    return ExchangeResponse(answers=[answer]).ByteSize()


def handshake_bytes(
    binding: Binding, *, payload_bytes: int, classes: int, max_records: int
) -> tuple[int, int]:
    """Serialised bytes (up, down) of opening a prediction session with a default deadline of 10 s."""
    hello = hello_message(binding, payload_bytes=payload_bytes, deadline_ms=10_000)
    welcome = Welcome(
        protocol_version=PROTOCOL_VERSION,
        classes=classes,
        max_records=max_records,
        max_message_bytes=max_records * (payload_bytes + 64),
    )
    return (
        PredictStreamRequest(hello=hello).ByteSize(),
        PredictStreamResponse(welcome=welcome).ByteSize(),
    )


def _is_typed(op: str, tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> bool:
    tensor = tensors.get(name)
    return (
        op == PREDICT
        and len(tensors) == 1
        and tensor is not None
        and (tensor.dtype, tensor.dim()) == (dtype, 2)
    )
