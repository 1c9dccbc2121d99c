"""A thread that calls functions at given times."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Timer", "TimerThread"]


@dataclass(order=True)
class Timer:
    """One pending call; `cancel` lets go of what the function holds."""

    when: float
    order: int
    action: Callable[[], None] | None = field(compare=False)

    def cancel(self) -> None:
        """Never call it."""
        self.action = None


class TimerThread:
    """Calls functions at times of `time.monotonic`, in order, on one thread that starts with the first one.

    The functions must be short and must not raise.
    """

    def __init__(self, *, name: str) -> None:
        self._name = name
        self._timers: list[Timer] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def call_at(self, when: float, action: Callable[[], None]) -> Timer:
        """Call `action` at `when`, seconds of `time.monotonic`; never once closed."""
        timer = Timer(when, next(self._order), action)
        with self._changed:
            if self._closed:
                return timer
            heapq.heappush(self._timers, timer)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            elif self._timers[0] is timer:
                self._changed.notify()
        return timer

    def close(self) -> None:
        """Drop what is pending and end the thread; idempotent."""
        with self._changed:
            self._closed = True
            self._timers.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._timers or self._timers[0].when > time.monotonic()):
                    self._changed.wait(self._timers[0].when - time.monotonic() if self._timers else None)
                if self._closed:
                    return
                action = heapq.heappop(self._timers).action
            if action is not None:
                action()
