"""An upload: messages in, releases on the disk, in few and large appends."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from delta.errors import DeltaError
from delta.training.cloud import UploadChunk
from delta.training.spec import DatasetSpec
from delta.wire.training import UploadReleasesRequest, decode_chunk, max_upload_records
from delta_server.stream import parse
from delta_server.training.reading import Reader
from delta_server.training.store import ReleaseStore, record_bytes

__all__ = ["receive_releases"]

_COMMIT_BYTES = 4 * 2**20
_COMMIT_S = 0.5


async def receive_releases(reader: Reader, store: ReleaseStore, spec: DatasetSpec, *, idle_s: float) -> int:
    """Store what comes behind an upload's head, also when it ends in an error or is cut.

    Args:
        reader: of the client's messages.
        store: of the data set.
        spec: of the data set.
        idle_s: how long the client may be silent, seconds.

    Returns:
        How many releases are stored for good.

    Raises:
        DeltaError: a message is refused, or cannot be stored; those before it are stored.
    """
    most = max_upload_records(spec.release.payload_bytes)
    pending: list[UploadChunk] = []
    size, due = 0, 0.0
    try:
        while True:
            full = size >= _COMMIT_BYTES or bool(pending and not await reader.ready(due - time.monotonic()))
            if full or (pending and time.monotonic() >= due):
                await asyncio.to_thread(store.append, pending)
                pending, size = [], 0
                continue
            raw = await reader.next(idle_s=idle_s)
            if raw is None:
                break
            chunk = decode_chunk(parse(UploadReleasesRequest, raw), spec=spec, max_records=most)
            due = due if pending else time.monotonic() + _COMMIT_S
            pending.append(chunk)
            size += len(chunk.labels) * record_bytes(spec)
        return await asyncio.to_thread(store.append, pending)
    except BaseException:
        # What arrived whole is kept, and what of it was stored just now is only compared.
        with suppress(DeltaError):
            await asyncio.shield(asyncio.to_thread(store.append, pending))
        raise
