"""The memo: the stored bytes of each release, which a retry or a repeated query sends again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from delta.errors import ConfigError
from delta.release.ids import ReleaseId

__all__ = ["InMemoryMemo", "ReleaseMemo", "recall"]


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


def recall(memo: ReleaseMemo | None, payload: Tensor, names: Sequence[ReleaseId]) -> list[bool]:
    """Put stored bytes in the place of drawn ones, and store the others.

    Args:
        memo: none stores nothing.
        payload: `[n, B]` uint8, changed in place.
        names: of the releases, `[n]`.

    Returns:
        Whether each is new.

    Raises:
        ConfigError: the memo holds bytes of another size.
    """
    if memo is None:
        return [True] * len(names)
    fresh = []
    for row, name in zip(payload, names, strict=True):
        known = memo.get(name)
        stored = known if known is not None else memo.keep(name, row.numpy().tobytes())
        if len(stored) != len(row):
            raise ConfigError(
                f"the memo holds {len(stored)} bytes for a release of {len(row)}; "
                "it belongs to another release configuration or is damaged"
            )
        row.copy_(torch.frombuffer(bytearray(stored), dtype=torch.uint8))
        fresh.append(known is None)
    return fresh
