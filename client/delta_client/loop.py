"""The one event loop thread that all sessions of a process share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["LoopThread"]

T = TypeVar("T")


class LoopThread:
    """An event loop on a thread of its own, started by the first session and ended by the last.

    gRPC's asyncio layer serves several loops of one process poorly, hence one for all.
    """

    _guard = threading.Lock()
    _shared: LoopThread | None = None

    def __init__(self) -> None:
        self._users = 0
        self.loop = _new_loop()
        self._thread = threading.Thread(target=self._run, name="delta-client", daemon=True)
        self._thread.start()

    @property
    def ident(self) -> int | None:
        """Of the thread."""
        return self._thread.ident

    @classmethod
    def acquire(cls) -> LoopThread:
        """The shared loop, started if need be; each call needs one `release`."""
        with cls._guard:
            if cls._shared is None:
                cls._shared = cls()
            cls._shared._users += 1
            return cls._shared

    def release(self) -> None:
        """Let go of it; the last user ends the thread."""
        with self._guard:
            self._users -= 1
            if self._users:
                return
            LoopThread._shared = None
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it; never from the loop itself."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())


def _new_loop() -> asyncio.AbstractEventLoop:
    """The event loop of uvloop where that is installed, or asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
