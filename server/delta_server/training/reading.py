"""The reading side of a training stream: idle limits, and an end when the server stops."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from delta.errors import CloudUnavailableError, RequestError
from delta_server.guard import Context

__all__ = ["Reader"]


class Reader:
    """Messages of a client, one at a time. Waiting for one may be given up and taken up again.

    Args:
        context: of the call.
        draining: set when the server stops.
    """

    def __init__(self, context: Context, draining: asyncio.Event) -> None:
        self._context = context
        self._end = asyncio.create_task(draining.wait())
        self._read: asyncio.Task[Any] | None = None

    async def ready(self, wait_s: float) -> bool:
        """Whether a message, or the end, is there within so many seconds.

        Raises:
            CloudUnavailableError: the server is stopping.
        """
        if self._read is None:  # a read that is under way cannot be called off, so it is kept
            self._read = asyncio.create_task(self._context.read())
        await asyncio.wait(
            {self._read, self._end}, timeout=max(0.0, wait_s), return_when=asyncio.FIRST_COMPLETED
        )
        if self._end.done():
            raise CloudUnavailableError("the server is stopping; go on where it has acknowledged, later")
        return self._read.done()

    async def next(self, *, idle_s: float) -> bytes | None:
        """The next message; none at the end.

        Raises:
            RequestError: nothing came for `idle_s` seconds.
            CloudUnavailableError: the server is stopping.
        """
        if not await self.ready(idle_s) or self._read is None:
            raise RequestError(f"nothing came for {idle_s:g} s; send on, or end the stream")
        raw = self._read.result()
        self._read = None
        return None if raw is grpc.aio.EOF else raw

    def close(self) -> None:
        """Read no more."""
        self._end.cancel()
        if self._read is not None:
            self._read.cancel()
