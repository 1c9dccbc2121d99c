"""Who a record is, and under which names its release is known."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType

import torch
from torch import Tensor

from delta.errors import InputError

__all__ = ["RecordIds", "ReleaseId", "ReleaseIdentity", "identities_of", "length_prefixed", "record_digest"]

ReleaseId = NewType("ReleaseId", str)
"""Opaque name of one release: 64 hex digits of an HMAC, for memo and ledger. It names no record."""


@dataclass(frozen=True)
class RecordIds:
    """Who the records are.

    Attributes:
        records: the owner's opaque id of each record; empty to use content digests inside one subject.
        subjects: the person whom each record is about; empty where unknown, and then reports say
            "person level: not accounted".
    """

    records: Sequence[str] = ()
    subjects: Sequence[str] = ()

    def check(self, count: int) -> None:
        """Refuse ids that are not one a record.

        Raises:
            InputError: another number of record ids or subjects.
        """
        for name, ids in (("record ids", self.records), ("subjects", self.subjects)):
            if isinstance(ids, str) or len(ids) not in (0, count):
                raise InputError(f"expected {count} {name}, one a record, or none; got {len(ids)}")
            if not all(isinstance(one, str) for one in ids):
                raise InputError(f"{name} must be strings; convert them, the same way every time")


@dataclass(frozen=True)
class ReleaseIdentity:
    """Everything that makes a release a distinct one.

    Attributes:
        subject: the person; empty where unknown.
        record: the owner's record id, or the digest in hex where there is none.
        digest: SHA-256 of the preprocessed record, 32 bytes.
        release_hash: of the release configuration.
        mechanism: identifier of the mechanism.
    """

    subject: str
    record: str
    digest: bytes
    release_hash: str
    mechanism: str


def identities_of(
    x: Tensor, ids: RecordIds | None, *, release_hash: str, mechanism: str
) -> list[ReleaseIdentity]:
    """What makes the releases of records `[n, …]` distinct ones.

    Args:
        x: preprocessed records.
        ids: who they are; none for content digests inside one subject.
        release_hash: of the release configuration.
        mechanism: identifier of the mechanism.

    Raises:
        InputError: ids that are not one a record.
    """
    known = ids if ids is not None else RecordIds()
    known.check(len(x))
    digests = _digests(x)
    records: Sequence[str] = known.records or [digest.hex() for digest in digests]
    subjects = known.subjects or [""] * len(x)
    return [
        ReleaseIdentity(subject, record, digest, release_hash, mechanism)
        for subject, record, digest in zip(subjects, records, digests, strict=True)
    ]


def record_digest(record: Tensor) -> bytes:
    """SHA-256 over dtype, shape and bytes of one preprocessed record, never of what a model made of it.

    Args:
        record: any shape, on any device.

    Returns:
        32 bytes; equal values in another memory layout give equal digests.
    """
    return _digests(record[None])[0]


def _digests(records: Tensor) -> list[bytes]:
    """`record_digest` of each of `[n, …]`."""
    dense = records.detach().cpu().contiguous()
    header = length_prefixed(str(dense.dtype).removeprefix("torch."), ",".join(map(str, dense.shape[1:])))
    content = dense.view(len(dense), math.prod(dense.shape[1:])).view(torch.uint8).numpy()
    begun = hashlib.sha256(header)
    digests = []
    for row in content:
        digest = begun.copy()
        digest.update(row)
        digests.append(digest.digest())
    return digests


def length_prefixed(*fields: str | bytes) -> bytes:
    """One string that no other list of fields gives: each behind its length in 8 bytes, big-endian."""
    parts = []
    for value in fields:
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        parts += [len(data).to_bytes(8, "big"), data]
    return b"".join(parts)
