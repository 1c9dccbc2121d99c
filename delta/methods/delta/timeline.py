"""When one inference did what: the private side's steps, and the answer's way there and back beside them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from delta.transport.base import Answer

__all__ = ["Event", "Timeline"]


@dataclass(frozen=True)
class Event:
    """Something that took from `start_ms` to `end_ms`, milliseconds from the call's beginning.

    Attributes:
        lane: `private`, or `cloud` for what happened beyond this process.
        name: what it was.
        start_ms: when it began.
        end_ms: when it was done.
    """

    lane: str
    name: str
    start_ms: float
    end_ms: float


class Timeline:
    """A stopwatch: each `mark` ends the private side's step of that name."""

    def __init__(self) -> None:
        self.started = self._last = time.perf_counter()
        self._events: list[Event] = []
        self._sent = self._answered = 0.0

    def mark(self, name: str) -> float:
        """End a step; its seconds."""
        now = time.perf_counter()
        self._add("private", name, self._last, now)
        seconds, self._last = now - self._last, now
        return seconds

    def sent(self, requests: Iterable[Future[Answer]]) -> None:
        """From now on, until the last of these is answered, the cloud has its turn."""
        self._sent = time.perf_counter()
        for request in requests:
            request.add_done_callback(lambda _: self._answer())

    def events(self) -> list[Event]:
        """All of them; the cloud's is there once every request was answered."""
        found = list(self._events)
        if self._answered:
            start, end = ((at - self.started) * 1e3 for at in (self._sent, self._answered))
            found.append(Event("cloud", "transfer, queue and cloud model", start, end))
        return found

    def _answer(self) -> None:
        self._answered = max(self._answered, time.perf_counter())

    def _add(self, lane: str, name: str, start: float, end: float) -> None:
        self._events.append(Event(lane, name, (start - self.started) * 1e3, (end - self.started) * 1e3))
