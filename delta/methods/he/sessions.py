"""The clients' public keys in the cloud: whose are complete, whose are still on their way, and who must wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from delta.errors import CloudOverloadedError

__all__ = ["Sessions"]

_UNFINISHED = 64
_BYTES = 2**30
"""Memory of the unpacked keys, of complete and of unfinished sessions each; one is held whatever it weighs."""
_STALLED_S = 2.0
"""An unfinished session that has waited so long for its next key makes room where room is needed."""
_EXPIRY_S = 60.0
"""An unfinished session that has waited so long goes in any case."""


@dataclass
class _Session:
    used: float
    keys: dict[int, Any] = field(default_factory=dict)


class Sessions:
    """Two bounded tables: keys that are still on their way never drive out those that are complete.

    Names are not authenticated, so anyone can fill both tables. Who is in use stays; newcomers are refused.

    Args:
        needed: how many keys make a session complete.
        key_bytes: memory of one unpacked key.
        most: complete sessions; fewer of either kind where their keys are large.
        most_unfinished: sessions whose keys are on their way; each counts as if all its keys had come, so that
            who has begun can end.
        in_use_s: how long after its last use a complete session does not make room.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        needed: int,
        *,
        key_bytes: int,
        most: int,
        most_unfinished: int = _UNFINISHED,
        in_use_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        fit = max(1, _BYTES // max(1, needed * key_bytes))
        self._needed = needed
        self._most = min(most, fit)
        self._most_unfinished = min(most_unfinished, fit)
        self._in_use_s = in_use_s
        self._clock = clock
        self._complete: dict[bytes, _Session] = {}
        self._unfinished: dict[bytes, _Session] = {}
        self._lock = threading.Lock()

    @property
    def counts(self) -> tuple[int, int]:
        """How many are complete, and how many unfinished."""
        with self._lock:
            return len(self._complete), len(self._unfinished)

    def add(self, name: bytes, number: int, key: Any) -> int:  # noqa: ANN401
        """Keep one key of a session.

        Returns:
            How many keys the session still lacks.

        Raises:
            CloudOverloadedError: all room is taken by sessions in use.
        """
        with self._lock:
            now = self._clock()
            complete = self._complete.get(name)
            if complete is not None:
                complete.keys[number] = key
                return 0
            session = self._unfinished.get(name)
            if session is None:
                # Told with the first key, before all others are sent for nothing.
                self._idle(now)
                self._make_room(now)
                session = self._unfinished[name] = _Session(now)
            if number not in session.keys:
                # The same key again is no progress: a stranger with one small key cannot keep a place.
                session.used = now
            session.keys[number] = key
            missing = self._needed - len(session.keys)
            if missing == 0:
                idle = self._idle(now)
                if idle is not None:
                    del self._complete[idle]
                del self._unfinished[name]
                session.used = now
                self._complete[name] = session
            return missing

    def keys_of(self, name: bytes) -> dict[int, Any] | None:
        """All keys of a complete session; none where there is no such session."""
        with self._lock:
            if self._needed == 0:
                return {}
            session = self._complete.get(name)
            return None if session is None else dict(session.keys)

    def used(self, name: bytes) -> None:
        """Note that a complete session has asked for something that could be computed."""
        with self._lock:
            session = self._complete.get(name)
            if session is not None:
                session.used = self._clock()

    def _idle(self, now: float) -> bytes | None:
        """The complete session that makes room for another; none where there is room.

        Raises:
            CloudOverloadedError: all are in use.
        """
        if len(self._complete) < self._most:
            return None
        oldest = min(self._complete, key=lambda name: self._complete[name].used)
        if now - self._complete[oldest].used < self._in_use_s:
            raise CloudOverloadedError(
                f"keys: the cloud holds the keys of {self._most} clients, and all are in use; try again later"
            )
        return oldest

    def _make_room(self, now: float) -> None:
        """Room for one more unfinished session.

        Raises:
            CloudOverloadedError: all make progress.
        """
        waited = {name: now - session.used for name, session in self._unfinished.items()}
        for name in [name for name, seconds in waited.items() if seconds >= _EXPIRY_S]:
            del self._unfinished[name]
        if len(self._unfinished) < self._most_unfinished:
            return
        stalled = [name for name in self._unfinished if waited[name] >= _STALLED_S]
        if not stalled:
            raise CloudOverloadedError(
                f"keys: {self._most_unfinished} clients are sending theirs at the moment; try again later"
            )
        # Those who have sent least have least to lose.
        del self._unfinished[min(stalled, key=lambda name: len(self._unfinished[name].keys))]
