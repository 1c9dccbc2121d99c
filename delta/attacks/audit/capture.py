"""A transport that keeps the bytes which a private half sends: the serialised messages of `PredictStream`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from delta.errors import RequestError
from delta.methods.schema import PREDICT, CloudHalf, Operation, TensorSpec
from delta.release.config import ReleaseConfig
from delta.release.packing import unpack_bits
from delta.transport.base import Answer
from delta.transport.inprocess import InProcessTransport
from delta.wire.predict import PredictStreamRequest, check_bits, encode_bits
from delta.wire.tensors import tensor_from_bytes

__all__ = ["CapturingTransport", "SilentCloud", "parse_packets"]

_MOST_RECORDS = 4096


class CapturingTransport:
    """A session in this process whose requests pass as bytes: what is captured is what the cloud reads.

    Args:
        half: the cloud half.
        release: gives the size of a record's bits.
    """

    def __init__(self, half: CloudHalf, *, release: ReleaseConfig) -> None:
        self._inner = InProcessTransport(half)
        self._release = release
        self._sequence = 0
        self.packets: list[bytes] = []

    @property
    def handshake_bytes(self) -> tuple[int, int]:
        """Of the inner transport."""
        return self._inner.handshake_bytes

    def submit(self, op: str, tensors: Mapping[str, Tensor], *, deadline_s: float) -> Future[Answer]:
        """Serialise, keep, parse and answer one request; see `Transport.submit`."""
        bits = tensors["bits"]
        data = encode_bits(bits, payload_bytes=self._release.payload_bytes)
        message = PredictStreamRequest(first_id=self._sequence, count=len(bits), bits=data)
        self._sequence += len(bits)
        packet = message.SerializeToString()
        self.packets.append(packet)
        return self._inner.submit(op, {"bits": _bits_of(packet, self._release)}, deadline_s=deadline_s)

    def close(self) -> None:
        """End the session."""
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SilentCloud:
    """A cloud half that answers zeros: no answer has a part in what leaves (I1), so an audit needs no model.

    Args:
        release: gives the size of a record's bits.
        classes: of the logits.
    """

    def __init__(self, release: ReleaseConfig, *, classes: int) -> None:
        self._operations = {
            PREDICT: Operation(
                inputs={"bits": TensorSpec(torch.uint8, ("n", release.payload_bytes))},
                outputs={"logits": TensorSpec(torch.float32, ("n", classes))},
                run=lambda tensors: {"logits": torch.zeros(len(tensors["bits"]), classes)},
                batchable=True,
            )
        }

    @property
    def operations(self) -> Mapping[str, Operation]:
        """The one operation."""
        return self._operations


def parse_packets(packets: Sequence[bytes], release: ReleaseConfig) -> tuple[Tensor, Tensor]:
    """What captured bytes hold, parsed and checked as a cloud does it.

    Returns:
        The records' packed bits `[n, B]` and their bits `[n, d]`, both uint8, in the order of sending.

    Raises:
        RequestError: the bytes are no such messages, or records are missing between them.
    """
    parts, expected = [], 0
    for packet in packets:
        message = _message_of(packet)
        if message.first_id != expected:
            raise RequestError(
                f"record {expected} was to come next, got {message.first_id}; a packet is lost"
            )
        expected += message.count
        parts.append(_checked(message, release))
    packed = torch.cat(parts) if parts else torch.empty(0, release.payload_bytes, dtype=torch.uint8)
    return packed, unpack_bits(packed, release.message.shape).flatten(1)


def _bits_of(packet: bytes, release: ReleaseConfig) -> Tensor:
    return _checked(_message_of(packet), release)


def _message_of(packet: bytes) -> PredictStreamRequest:
    try:
        return PredictStreamRequest.FromString(packet)
    except Exception:  # protobuf's own error class lies outside this layer
        raise RequestError(f"a packet of {len(packet)} bytes is no message of a prediction stream") from None


def _checked(message: PredictStreamRequest, release: ReleaseConfig) -> Tensor:
    size = release.payload_bytes
    padding = 8 * size - math.prod(release.message.shape)
    data = check_bits(
        message.bits, count=message.count, payload_bytes=size, max_records=_MOST_RECORDS, pad_bits=padding
    )
    return tensor_from_bytes(data, torch.uint8, (message.count, size))
