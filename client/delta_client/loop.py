"""The one event loop thread that all sessions of a process share."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["LoopThread"]

T = TypeVar("T")


class LoopThread:
    """An event loop on a daemon thread, started by the first session and never ended.

    gRPC's asyncio layer has one poller a process, which goes on calling every loop that it has ever served: a
    closed one fails there. So there is one for all sessions, and it outlives them.
    """

    _guard = threading.Lock()
    _shared: LoopThread | None = None

    def __init__(self) -> None:
        self.loop = _new_loop()
        self._thread = threading.Thread(target=self._run, name="delta-client", daemon=True)
        self._thread.start()

    @property
    def ident(self) -> int | None:
        """Of the thread."""
        return self._thread.ident

    @classmethod
    def shared(cls) -> LoopThread:
        """The process's loop, started if need be."""
        with cls._guard:
            if cls._shared is None:
                # gRPC tells every closed connection on standard error unless it is told otherwise first.
                os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
                cls._shared = cls()
            return cls._shared

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it; never from the loop itself."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


def _new_loop() -> asyncio.AbstractEventLoop:
    """The event loop of uvloop where that is installed, or asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
