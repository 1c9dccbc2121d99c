"""Stored releases with their labels as the messages of an upload, decoded strictly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from delta.errors import RequestError
from delta.training.cloud import UploadChunk
from delta.training.spec import DatasetSpec, label_bits
from delta.v1.training_pb2 import TrainInteractivelyRequest, UploadReleasesRequest
from delta.wire.predict import check_bits, encode_bits
from delta.wire.tensors import tensor_from_bytes

__all__ = [
    "UPLOAD_BYTES",
    "decode_chunk",
    "decode_exchange",
    "encode_chunk",
    "encode_exchange",
    "max_upload_records",
    "pack_flags",
    "pack_labels",
    "records_a_chunk",
    "resized",
    "unpack_flags",
    "unpack_labels",
]

UPLOAD_BYTES = 16 << 20
"""Packed bits that one message may hold, bytes: an interactive batch of wide releases must fit."""
_MOST_RECORDS = 4096
_CHUNK_BYTES = 1 << 20  # of an upload: more in one message gains nothing


def max_upload_records(payload_bytes: int) -> int:
    """Releases of so many bytes that a cloud takes in one message, at least 1."""
    return max(1, min(_MOST_RECORDS, UPLOAD_BYTES // payload_bytes))


def records_a_chunk(payload_bytes: int, *, most: int) -> int:
    """Releases of so many bytes that a client sends in one message of an upload, at least 1."""
    return max(1, min(most, _CHUNK_BYTES // payload_bytes))


def resized(chunks: Iterable[UploadChunk], *, most: int) -> Iterator[UploadChunk]:
    """The same chunks, those of more than `most` records cut; lazily, and an empty one is left out."""
    for chunk in chunks:
        for start in range(0, len(chunk.bits), most):
            part = slice(start, start + most)
            yield UploadChunk(chunk.first + start, chunk.bits[part], chunk.labels[part], chunk.held_out[part])


def pack_labels(labels: Tensor, *, classes: int) -> bytes:
    """Labels `[n]` int64 as one bit string, ⌈log₂ classes⌉ bits each, most significant first.

    Raises:
        RequestError: another dtype or shape, or a label out of range.
    """
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise RequestError(f"labels: expected int64[n], got {_kind(labels)}")
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise RequestError(f"a label is out of range; send 0 to {classes - 1}")
    shifts = np.arange(label_bits(classes) - 1, -1, -1)
    bits = (labels.numpy(force=True)[:, None] >> shifts) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def unpack_labels(data: bytes, *, count: int, classes: int) -> Tensor:
    """The inverse of `pack_labels`: `[count]` int64.

    Raises:
        RequestError: another length, padding that is not zero, or a label out of range.
    """
    width = label_bits(classes)
    bits = _bits_of(data, count * width, what=f"{count} labels of {width} bits").reshape(count, width)
    labels = bits.astype(np.int64) @ (1 << np.arange(width - 1, -1, -1, dtype=np.int64))
    if count and int(labels.max()) >= classes:
        raise RequestError(f"a label is out of range; send 0 to {classes - 1}")
    return torch.from_numpy(labels)


def pack_flags(flags: Tensor) -> bytes:
    """Flags `[n]` bool, eight a byte, the first in the most significant place.

    Raises:
        RequestError: another dtype or shape.
    """
    if flags.dtype != torch.bool or flags.dim() != 1:
        raise RequestError(f"flags: expected bool[n], got {_kind(flags)}")
    return np.packbits(flags.numpy(force=True)).tobytes()


def unpack_flags(data: bytes, *, count: int) -> Tensor:
    """The inverse of `pack_flags`: `[count]` bool.

    Raises:
        RequestError: another length, or padding that is not zero.
    """
    return torch.from_numpy(_bits_of(data, count, what=f"{count} flags").astype(np.bool_))


def encode_chunk(chunk: UploadChunk, *, classes: int) -> UploadReleasesRequest:
    """A chunk of n ≥ 1 records as a message.

    Raises:
        RequestError: a tensor has another dtype or length, a label is out of range, or one is set where the
            record is held out: that label would leave.
    """
    count = len(chunk.bits)
    if not count == len(chunk.labels) == len(chunk.held_out):
        raise RequestError(
            f"{count} releases with {len(chunk.labels)} labels and {len(chunk.held_out)} flags; give one of each"
        )
    flags = pack_flags(chunk.held_out)
    _check_held_out(chunk.labels, chunk.held_out)
    return UploadReleasesRequest(
        first=chunk.first,
        count=count,
        bits=encode_bits(chunk.bits, payload_bytes=chunk.bits.shape[-1]),
        labels=pack_labels(chunk.labels, classes=classes),
        held_out=flags,
    )


def decode_chunk(message: UploadReleasesRequest, *, spec: DatasetSpec, max_records: int) -> UploadChunk:
    """A message as a chunk, all of it checked.

    Args:
        message: one of an upload, not its head.
        spec: of the data set.
        max_records: most records that one message may hold.

    Raises:
        RequestError: a count, a length, padding, or a label out of range; a held-out record with a label; or
            records beyond those of the data set.
    """
    if message.HasField("head"):
        raise RequestError("an upload has one head, in its first message; send releases after it")
    bits = _decode_bits(message, spec=spec, max_records=max_records)
    if message.first + message.count > spec.records:
        raise RequestError(
            f"releases {message.first} to {message.first + message.count - 1} in a data set of {spec.records}; "
            "make another data set for more"
        )
    labels = unpack_labels(message.labels, count=message.count, classes=spec.classes)
    held_out = unpack_flags(message.held_out, count=message.count)
    _check_held_out(labels, held_out)
    return UploadChunk(message.first, bits, labels, held_out)


def encode_exchange(
    bits: Tensor, labels: Tensor, *, classes: int, update: bool, checkpoint: bool
) -> TrainInteractivelyRequest:
    """One batch of an interactive training as a message; without `update` no label leaves.

    Raises:
        RequestError: a tensor has another dtype or length, or a label is out of range.
    """
    if update and len(bits) != len(labels):
        raise RequestError(f"{len(bits)} releases with {len(labels)} labels; give one of each")
    return TrainInteractivelyRequest(
        count=len(bits),
        bits=encode_bits(bits, payload_bytes=bits.shape[-1]),
        labels=pack_labels(labels, classes=classes) if update else b"",
        update=update,
        checkpoint=checkpoint,
    )


def decode_exchange(
    message: TrainInteractivelyRequest, *, spec: DatasetSpec, max_records: int
) -> tuple[Tensor, Tensor]:
    """Bits `[n, B]` and labels `[n]` of one batch; the labels are zeros without `update`.

    Raises:
        RequestError: a count, a length, padding, or a label out of range; labels without `update`; or a
            second hello.
    """
    if message.HasField("hello"):
        raise RequestError(
            "an interactive training has one hello, in its first message; send batches after it"
        )
    bits = _decode_bits(message, spec=spec, max_records=max_records)
    if message.update:
        return bits, unpack_labels(message.labels, count=message.count, classes=spec.classes)
    if message.labels:
        raise RequestError("a batch without an update carries labels; send none")
    return bits, torch.zeros(message.count, dtype=torch.int64)


def _decode_bits(
    message: UploadReleasesRequest | TrainInteractivelyRequest, *, spec: DatasetSpec, max_records: int
) -> Tensor:
    size = spec.release.payload_bytes
    data = check_bits(
        message.bits,
        count=message.count,
        payload_bytes=size,
        max_records=max_records,
        pad_bits=8 * size - spec.release.bits,
    )
    return tensor_from_bytes(data, torch.uint8, (message.count, size))


def _check_held_out(labels: Tensor, held_out: Tensor) -> None:
    if bool((labels[held_out] != 0).any()):
        raise RequestError("a held-out release has a label; its label stays private, so send 0")


def _bits_of(data: bytes, count: int, *, what: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The first `count` bits; exactly the bytes for them, and zeros to the end."""
    size = -(-count // 8)
    if len(data) != size:
        raise RequestError(f"{what} need {size} bytes, got {len(data)}")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    if bits[count:].any():
        raise RequestError(f"{what}: the last {size * 8 - count} bits are padding and must be zero")
    return bits[:count]


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
