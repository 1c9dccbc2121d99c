"""Packed bits and logits as the messages of `Predict` and `PredictStream`."""

from __future__ import annotations

import torch
from torch import Tensor

from delta.errors import CloudAnswerError, RequestError
from delta.v1.inference_pb2 import (
    ChunkAnswer,
    PredictRequest,
    PredictResponse,
    PredictStreamRequest,
    PredictStreamResponse,
)
from delta.wire.tensors import tensor_bytes, tensor_from_bytes

__all__ = [
    "ChunkAnswer",
    "PredictRequest",
    "PredictResponse",
    "PredictStreamRequest",
    "PredictStreamResponse",
    "check_bits",
    "decode_logits",
    "encode_bits",
]


def encode_bits(bits: Tensor, *, payload_bytes: int) -> bytes:
    """Packed bits `uint8[n, B]` of n ≥ 1 records as bytes.

    Raises:
        RequestError: another dtype or shape.
    """
    if bits.dtype != torch.uint8 or bits.dim() != 2 or not bits.shape[0] or bits.shape[1] != payload_bytes:
        got = f"{str(bits.dtype).removeprefix('torch.')}{list(bits.shape)}"
        raise RequestError(f"bits: expected uint8[n, {payload_bytes}], got {got}")
    return tensor_bytes(bits)


def check_bits(data: bytes, *, count: int, payload_bytes: int, max_records: int, pad_bits: int = 0) -> bytes:
    """Check the packed bits of a message against what it states; returns them as they are.

    Args:
        data: bytes of the records, one after the other.
        count: number of records that the message states.
        payload_bytes: bytes a record.
        max_records: most records that one message may hold.
        pad_bits: low bits of a record's last byte that must be zero, 0 to 7.

    Raises:
        RequestError: count out of range, wrong number of bytes, or a pad bit set.
    """
    if not 1 <= count <= max_records:
        raise RequestError(f"a message of {count} records; send 1 to {max_records} in each")
    if len(data) != count * payload_bytes:
        raise RequestError(
            f"{count} records of {payload_bytes} bytes need {count * payload_bytes} bytes, got {len(data)}"
        )
    if pad_bits and data[payload_bytes - 1 :: payload_bytes].translate(
        None, bytes(range(0, 256, 1 << pad_bits))
    ):
        raise RequestError(f"the last {pad_bits} bits of each record are padding and must be zero")
    return data


def decode_logits(data: bytes, *, count: int, classes: int) -> Tensor:
    """Bytes as logits `float32[count, classes]`; NaN passes, the method checks.

    Raises:
        CloudAnswerError: the wrong number of bytes.
    """
    if len(data) != 4 * count * classes:
        raise CloudAnswerError(
            f"the cloud answered {len(data)} bytes of logits, expected {4 * count * classes} "
            f"({count} records of {classes} classes)"
        )
    return tensor_from_bytes(data, torch.float32, (count, classes))
