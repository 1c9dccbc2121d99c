"""The releases of one data set on disk: what is acknowledged survives whatever happens next."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from delta.errors import CloudDeniedError, CloudStorageError, InputError, RequestError
from delta.files import write_whole
from delta.training.cloud import UploadChunk
from delta.training.cloud_trainer import StoredReleases
from delta.training.spec import DatasetSpec
from delta.wire.tensors import tensor_bytes
from delta_server.log import event

__all__ = ["ReleaseStore", "record_bytes"]

_BITS, _LABELS, _HELD_OUT, _COMMITTED = "bits.bin", "labels.bin", "held_out.bin", "committed"
_LABEL = np.dtype("<u2")  # a data set has at most 65,536 classes


def record_bytes(spec: DatasetSpec) -> int:
    """Bytes of a stored release: its bits, its label, its flag."""
    return spec.release.payload_bytes + _LABEL.itemsize + 1


class ReleaseStore:
    """Three files that only grow, and the count of releases in them that are stored for good.

    The count is written whole, after the files were synced: what lies behind it was never acknowledged, is
    never read, and goes with the next append. Safe to call from several threads.

    Args:
        folder: of the data set; it exists.
        spec: of the data set.

    Raises:
        CloudStorageError: a file is shorter than what was acknowledged.
    """

    def __init__(self, folder: Path, spec: DatasetSpec) -> None:
        self._folder = folder
        self._spec = spec
        self._sizes = {_BITS: spec.release.payload_bytes, _LABELS: _LABEL.itemsize, _HELD_OUT: 1}
        self._lock = threading.Lock()
        self._closed = False
        self._count = self._read_count()

    @property
    def count(self) -> int:
        """Releases stored for good."""
        return self._count

    def append(self, chunks: Sequence[UploadChunk]) -> int:
        """Store chunks that follow what is stored; returns how many releases are stored for good then.

        Releases that are stored already are compared and passed over. The chunks before one that is refused
        are stored.

        Raises:
            RequestError: a chunk leaves a gap, or differs from what is stored.
            CloudStorageError: it cannot be written; what was acknowledged before stays.
            CloudDeniedError: the data set was deleted.
        """
        with self._lock:
            self._check_open()
            pending: list[UploadChunk] = []
            end = self._count
            for chunk in chunks:
                if chunk.first == end:
                    pending.append(chunk)
                else:
                    self._write(pending)
                    pending = self._rest(chunk)
                end = self._count + sum(len(part.labels) for part in pending)
            self._write(pending)
            return self._count

    def read(self) -> StoredReleases:
        """All releases that are stored for good."""
        count = self._count
        bits = np.fromfile(self._folder / _BITS, np.uint8, count * self._sizes[_BITS])
        labels = np.fromfile(self._folder / _LABELS, _LABEL, count)
        return StoredReleases(
            bits=torch.from_numpy(bits.reshape(count, -1)),
            labels=torch.from_numpy(labels.astype(np.int64)),
            held_out=torch.from_numpy(self._flags()),
        )

    def trainable(self) -> int:
        """Releases among them that are not held out."""
        return self._count - int(self._flags().sum()) if self._count else 0

    def close(self) -> None:
        """Take nothing any more: the data set is being deleted."""
        with self._lock:
            self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise CloudDeniedError("the data set was deleted; create it again")

    def _flags(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return np.fromfile(self._folder / _HELD_OUT, np.uint8, self._count).astype(np.bool_)

    def _rest(self, chunk: UploadChunk) -> list[UploadChunk]:
        """What of a chunk is not stored yet; the part that is must be the same."""
        start = self._count
        if chunk.first > start:
            raise RequestError(
                f"release {chunk.first} would leave a gap: {start} are stored; go on with release {start}"
            )
        overlap = min(start - chunk.first, len(chunk.labels))
        for name, data in _columns(chunk, slice(0, overlap)).items():
            size = self._sizes[name]
            with open(self._folder / name, "rb") as file:
                file.seek(chunk.first * size)
                if file.read(overlap * size) != data:
                    raise RequestError(
                        f"releases {chunk.first} to {chunk.first + overlap - 1} are stored already and differ; "
                        f"go on with release {start}, or delete the data set"
                    )
        if overlap == len(chunk.labels):
            return []
        rest = slice(overlap, None)
        return [UploadChunk(start, chunk.bits[rest], chunk.labels[rest], chunk.held_out[rest])]

    def _write(self, chunks: Sequence[UploadChunk]) -> None:
        if not chunks:
            return
        columns = [_columns(chunk, slice(None)) for chunk in chunks]
        count = self._count + sum(len(chunk.labels) for chunk in chunks)
        try:
            for name, size in self._sizes.items():
                data = b"".join(column[name] for column in columns)
                _write_at(self._folder / name, self._count * size, data)
            write_whole(self._folder / _COMMITTED, b"%d\n" % count)
        except (OSError, InputError) as error:
            self._truncate()
            event("releases not stored", kind=type(error).__name__, records=count - self._count)
            raise CloudStorageError(
                f"the cloud has no room for more releases; {self._count} are stored for good: go on there once "
                "its operator has made room"
            ) from None
        self._count = count

    def _truncate(self) -> None:
        """Give back the room of what was not acknowledged."""
        for name, size in self._sizes.items():
            try:
                os.truncate(self._folder / name, self._count * size)
            except OSError:  # it goes with the next append
                continue

    def _read_count(self) -> int:
        try:
            count = int((self._folder / _COMMITTED).read_text(encoding="ascii"))
            lengths = {name: (self._folder / name).stat().st_size for name in self._sizes}
        except FileNotFoundError:
            return self._missing()
        except (OSError, ValueError):
            raise CloudStorageError("the data set is damaged: its count cannot be read") from None
        if not 0 <= count <= self._spec.records or any(
            lengths[name] < count * size for name, size in self._sizes.items()
        ):
            raise CloudStorageError(f"the data set is damaged: {count} releases are not all there")
        return count

    def _missing(self) -> int:
        if (self._folder / _COMMITTED).exists():
            raise CloudStorageError("the data set is damaged: a file of it is missing")
        return 0


def _columns(chunk: UploadChunk, rows: slice) -> dict[str, bytes]:
    """Some rows of a chunk as each file holds them."""
    return {
        _BITS: tensor_bytes(chunk.bits[rows]),
        _LABELS: chunk.labels[rows].numpy().astype(_LABEL).tobytes(),
        _HELD_OUT: chunk.held_out[rows].numpy().astype(np.uint8).tobytes(),
    }


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """Write at an offset, drop what was behind it, and sync."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
