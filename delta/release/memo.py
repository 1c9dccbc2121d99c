"""The memo: the stored bytes of each release, which a retry or a repeated query sends again."""

from __future__ import annotations

import threading
from typing import Protocol

from delta.release.ids import ReleaseId

__all__ = ["InMemoryMemo", "ReleaseMemo"]


class ReleaseMemo(Protocol):
    """What every memo does.

    Contract: what was stored first under a release id stays; threads may share a memo.
    """

    def get(self, release_id: ReleaseId) -> bytes | None:
        """The stored bytes, or none."""
        ...

    def keep(self, release_id: ReleaseId, payload: bytes) -> bytes:
        """Store bytes unless there are some already, and return those that are stored."""
        ...


class InMemoryMemo:
    """A memo that lives as long as its process, and grows by the payload's size a release."""

    def __init__(self) -> None:
        self._stored: dict[ReleaseId, bytes] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._stored)

    def get(self, release_id: ReleaseId) -> bytes | None:
        """The stored bytes, or none."""
        with self._lock:
            return self._stored.get(release_id)

    def keep(self, release_id: ReleaseId, payload: bytes) -> bytes:
        """Store bytes unless there are some already, and return those that are stored."""
        with self._lock:
            return self._stored.setdefault(release_id, bytes(payload))
