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
from delta_server.answers import AnswerRoom
from delta_server.batcher import Batcher, Job
from delta_server.config import ServerConfig
from delta_server.models import HostedModel, ModelStore

__all__ = ["Promise", "StreamSession", "parse"]

_UNREAD_BYTES = 8 * 2**20  # answers promised or unread, before a client is read no further
_JOINED_BYTES = 16384  # answers beyond it go in a message of their own


class StreamSession(ABC):
    """A session over a bidirectional stream of raw messages; the owner of its jobs.

    The reader admits jobs, the writer sends answers as they are finished. A request holds what its answer may
    come to from its admission until the answer is read. A stream that holds too much, or has too many unanswered
    requests, is not read until some are answered, so that a client that does not read its answers holds a
    bounded amount of memory: the limit and one answer, which may be larger. One that reads none for `unread_s`
    is ended. A message that gRPC has taken cannot be taken back; it is held until the client reads it or goes.
    """

    def __init__(
        self,
        context: grpc.aio.ServicerContext[Any, Any],
        models: ModelStore,
        batcher: Batcher,
        config: ServerConfig,
        room: AnswerRoom,
    ) -> None:
        self.closed = False
        self._context = context
        self._models = models
        self._batcher = batcher
        self._config = config
        self._answers = room
        self._outbox: deque[bytes] = deque()
        self._held = 0  # bytes of answers promised or unread
        self._writing = 0  # those of the message that gRPC has now
        self._writing_since = 0.0  # of the loop's time
        self._watcher: asyncio.TimerHandle | None = None
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
            try:
                async with asyncio.timeout(None) as silence:
                    self._watch(silence)
                    await self._read(model, deadline_ms, writer)
                    await writer
            except TimeoutError:
                raise RequestError(
                    f"answers were left unread for {self._config.unread_s:g} s, and the stream is ended; read "
                    "them as they come"
                ) from None
        except DeltaError:
            await self._end(writer)
            raise
        finally:
            self.closed = True
            if self._watcher is not None:
                self._watcher.cancel()
            writer.cancel()
            self._hold(-self._held)

    @property
    def held(self) -> int:
        """Bytes of answers promised to requests, or not read yet."""
        return self._held

    def drain(self) -> None:
        """Tell the client to send no more; what it sent is still answered."""
        self._draining = True
        self._rouse()

    def deliver(self, answer: bytes) -> None:
        """Queue an answer for writing."""
        if self.closed:
            return
        self._outbox.append(answer)
        self._hold(len(answer))
        self._rouse()

    def promise(self, size: int) -> Promise:
        """Hold room for an answer of so many bytes; returns the owner of its job.

        Raises:
            CloudOverloadedError: all streams together hold too much.
        """
        self._answers.promise(size)
        self._held += size
        return Promise(self, size)

    def keep(self, size: int, answer: bytes) -> None:
        """Queue the answer for which `size` bytes were promised."""
        if not self.closed:
            self._hold(-size)
            self.deliver(answer)

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
                    job.owner.deliver(self.encode(job, error, 0.0))
            while (self._unanswered >= limit or self._held > _UNREAD_BYTES) and not writer.done():
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
                    self._writing, self._writing_since = len(joined), self._loop.time()
                    await write(joined)
                    self._writing = 0
                    self._hold(-len(joined))
                    self._unanswered -= len(parts)
                    if self._room is not None and not self._room.done():
                        self._room.set_result(None)
                if self.closed:
                    return
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

    async def _end(self, writer: asyncio.Task[None]) -> None:
        """Let go of all but the message that gRPC has, and wait until that is read."""
        self.closed = True
        self._outbox.clear()
        self._hold(self._writing - self._held)
        self._rouse()
        await asyncio.wait([writer])

    def _watch(self, silence: asyncio.Timeout) -> None:
        """End the stream once a message has been with gRPC for too long; looks again when that may be."""
        now, allowed = self._loop.time(), self._config.unread_s
        left = self._writing_since + allowed - now if self._writing else allowed
        if left > 0:
            self._watcher = self._loop.call_later(left, self._watch, silence)
        else:
            silence.reschedule(now)

    def _hold(self, size: int) -> None:
        self._held += size
        self._answers.held += size

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Promise:
    """The owner of one job of a stream: it holds room for the job's answer until that has come."""

    __slots__ = ("_session", "_size", "encode")

    def __init__(self, session: StreamSession, size: int) -> None:
        self._session = session
        self._size = size
        self.encode = session.encode

    @property
    def closed(self) -> bool:
        """Whether the stream has ended."""
        return self._session.closed

    def deliver(self, answer: bytes) -> None:
        """Hand the answer to the stream."""
        self._session.keep(self._size, answer)


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
