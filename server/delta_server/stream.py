"""One open stream: its handshake, its reading side and its writing side."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from delta.errors import DeltaError, RequestError
from delta.wire.session import Hello, Welcome, check_version, decode_binding
from delta_server.batcher import Batcher, Job
from delta_server.config import ServerConfig
from delta_server.models import HostedModel, ModelStore

__all__ = ["StreamSession", "parse"]

_UNREAD_BYTES = 8 * 2**20  # answers that a client may leave unread before it is read no further
_JOINED_BYTES = 16384  # answers beyond it go in a message of their own


class StreamSession(ABC):
    """A session over a bidirectional stream of raw messages; the owner of its jobs.

    The reader admits jobs, the writer sends answers as they are finished. A stream with too many unanswered
    requests is not read until some are answered, so that a client that does not read its answers holds a
    bounded amount of memory.
    """

    def __init__(
        self,
        context: grpc.aio.ServicerContext[Any, Any],
        models: ModelStore,
        batcher: Batcher,
        config: ServerConfig,
    ) -> None:
        self.closed = False
        self._context = context
        self._models = models
        self._batcher = batcher
        self._config = config
        self._outbox: deque[bytes] = deque()
        self._unread_bytes = 0
        self._unanswered = 0
        self._reading = True
        self._draining = False
        self._loop = asyncio.get_running_loop()
        self._wake: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Serve the stream until the client ends it.

        Raises:
            DeltaError: the handshake or a message that cannot be attributed to a request is refused.
        """
        try:
            async with asyncio.timeout(self._config.handshake_s):
                raw = await self._context.read()
        except TimeoutError:
            raise RequestError(
                f"no Hello within {self._config.handshake_s:g} s; send it as the first message of a stream"
            ) from None
        if raw is grpc.aio.EOF:
            return
        model, deadline_ms, welcome = self._greet(self._hello_of(raw))
        await self._context.write(self._welcome(welcome))
        writer = asyncio.create_task(self._write())
        try:
            await self._read(model, deadline_ms, writer)
            await writer
        finally:
            self.closed = True
            writer.cancel()

    def drain(self) -> None:
        """Tell the client to send no more; what it sent is still answered."""
        self._draining = True
        self._rouse()

    def deliver(self, answer: bytes) -> None:
        """Queue an answer for writing."""
        self._outbox.append(answer)
        self._unread_bytes += len(answer)
        self._rouse()

    @abstractmethod
    def encode(self, job: Job, outcome: Any, cloud_ms: float) -> bytes:  # noqa: ANN401
        """Serialise the answer to a job; called on the batcher's thread."""

    @abstractmethod
    def _hello_of(self, raw: bytes) -> Hello | None: ...

    @abstractmethod
    def _bind(self, model: HostedModel, hello: Hello) -> Welcome: ...

    @abstractmethod
    def _welcome(self, welcome: Welcome) -> bytes: ...

    @abstractmethod
    def _drain_notice(self) -> bytes: ...

    @abstractmethod
    def _request(self, model: HostedModel, raw: bytes, deadline_ms: int) -> Job | bytes:
        """A message as a job, or the answer that refuses it."""

    def _greet(self, hello: Hello | None) -> tuple[HostedModel, int, Welcome]:
        if hello is None:
            raise RequestError("the first message of a stream must be its Hello")
        check_version(hello.protocol_version, peer="client")
        model = self._models.bind(decode_binding(hello.binding))
        if not hello.deadline_ms:
            raise RequestError("Hello states no deadline; set deadline_ms to what a request may take")
        return model, hello.deadline_ms, self._bind(model, hello)

    async def _read(self, model: HostedModel, deadline_ms: int, writer: asyncio.Task[None]) -> None:
        limit = self._config.stream_requests
        while not writer.done():
            raw = await self._context.read()
            if raw is grpc.aio.EOF:
                break
            self._unanswered += 1
            job = self._request(model, raw, deadline_ms)
            if isinstance(job, bytes):
                self.deliver(job)
            else:
                try:
                    self._batcher.submit(job)
                except DeltaError as error:
                    self.deliver(self.encode(job, error, 0.0))
            while (self._unanswered >= limit or self._unread_bytes > _UNREAD_BYTES) and not writer.done():
                self._room = self._loop.create_future()
                await self._room
        self._reading = False
        self._rouse()

    async def _write(self) -> None:
        outbox, write, told = self._outbox, self._context.write, False
        try:
            while True:
                while outbox:
                    # Serialised messages joined are one message: their repeated answers follow each other.
                    parts, size = [outbox.popleft()], 0
                    while outbox and (size := size + len(parts[-1])) < _JOINED_BYTES:
                        parts.append(outbox.popleft())
                    joined = b"".join(parts)
                    await write(joined)
                    self._unread_bytes -= len(joined)
                    self._unanswered -= len(parts)
                    if self._room is not None and not self._room.done():
                        self._room.set_result(None)
                if self._draining and not told:
                    told = True
                    await write(self._drain_notice())
                    continue
                if not self._reading and not self._unanswered:
                    return
                self._wake = self._loop.create_future()
                await self._wake
        finally:
            if self._room is not None and not self._room.done():
                self._room.set_result(None)

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


def parse(message_type: Any, raw: bytes) -> Any:  # noqa: ANN401
    """Parse a message.

    Raises:
        RequestError: it is not one.
    """
    try:
        return message_type.FromString(raw)
    except DecodeError:
        raise RequestError(
            f"a message is no {message_type.DESCRIPTOR.full_name}; send what this protocol version defines"
        ) from None
