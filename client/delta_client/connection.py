"""One connection: a bidirectional stream from its handshake to its end."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from delta.errors import (
    CloudAnswerError,
    CloudDeadlineError,
    CloudError,
    CloudUnavailableError,
    RequestError,
)
from delta.transport.base import Answer
from delta.transport.futures import fail, resolve
from delta.wire.session import Welcome, check_version
from delta.wire.status import as_transport_error, error_from_status

__all__ = ["Connection", "Dialect", "Pending"]

# A write that meets the end of its stream leaves a call with this status of grpc.aio's own, the peer's lost.
_LOCAL_FAILURE = "Internal error from Core"
_REFUSAL_S, _LOOK_S = 0.1, 0.005


class _OvertakenError(Exception):
    """The call ended while its Hello was being written, and why is not known."""


@dataclass(slots=True, eq=False)
class Pending:
    """One request that waits for its answer.

    Attributes:
        op: name of the operation.
        future: its outcome.
        sequence: its number in the session, by which the answer is matched.
        records: records in it.
        message: serialised request.
        deadline: when it fails, seconds of `time.monotonic`.
    """

    op: str
    future: Future[Answer]
    sequence: int
    records: int
    message: bytes
    deadline: float


class Dialect(ABC):
    """What differs between the streams: messages, and what an answer must look like."""

    path: str
    """Path of the method."""

    @abstractmethod
    def hello(self) -> bytes:
        """Serialise the first message."""

    @abstractmethod
    def welcome(self, raw: bytes) -> Welcome | None:
        """The answer to it, if it is one.

        Raises:
            CloudMismatchError: the server states something else than was agreed on.
        """

    @abstractmethod
    def check(self, pending: Pending, welcome: Welcome) -> None:
        """Refuse locally what the server has said it does not take.

        Raises:
            RequestError: the message is too large.
        """

    @abstractmethod
    def answers(self, raw: bytes) -> tuple[Sequence[tuple[int, Any]], bool]:
        """Parse a message: its answers with their sequence numbers, and whether the server drains."""

    @abstractmethod
    def outcome(self, pending: Pending, answer: Any, welcome: Welcome, size: int) -> Answer | Exception:  # noqa: ANN401
        """Check an answer (I4) and decode it."""


class Connection:
    """A stream that is dialled, greeted, used and ended once; lives on the event loop.

    Args:
        address: HOST:PORT.
        dialect: of the stream.
        credentials: of the channel; none for plaintext.
        connect_timeout_s: for dialling and greeting together, seconds.
        max_answer_bytes: largest message taken from the cloud.
        issued: how many sequence numbers the session has given out; an answer beyond them ends the stream.
        greeted: told the handshake's bytes (up, down).

    Attributes:
        greeted: whether the handshake succeeded.
        accepts: whether requests may still be sent.
    """

    def __init__(
        self,
        address: str,
        dialect: Dialect,
        *,
        credentials: grpc.ChannelCredentials | None,
        connect_timeout_s: float,
        max_answer_bytes: int,
        issued: Callable[[], int],
        greeted: Callable[[int, int], None],
    ) -> None:
        self._address = address
        self._dialect = dialect
        self._credentials = credentials
        self._connect_timeout_s = connect_timeout_s
        self._max_answer_bytes = max_answer_bytes
        self._issued = issued
        self._on_greeted = greeted
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Pending] = deque()
        self._live: dict[int, Pending] = {}
        self._wake: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.greeted = False
        self.accepts = True

    def send(self, pending: Pending) -> None:
        """Queue a request."""
        self._live[pending.sequence] = pending
        self._queue.append(pending)
        if self._timer is None or pending.deadline < self._timer.when():
            self._arm(pending.deadline)
        self._rouse()

    async def run(self) -> CloudError | RequestError:
        """Dial, greet and serve until the stream ends; what is unanswered then fails with the reason."""
        error: CloudError | RequestError = CloudUnavailableError("the session was closed")
        try:
            error = await self._serve()
        except (CloudError, RequestError) as reason:
            error = reason
        except grpc.RpcError as reason:
            error = error_from_status(reason)
        except asyncio.CancelledError:
            pass
        except Exception as reason:  # nothing that a server sends may end the loop
            error = as_transport_error(reason)
        finally:
            self.accepts = False
            if self._timer is not None:
                self._timer.cancel()
            for pending in self._live.values():
                fail(pending.future, error)
            self._live.clear()
            self._queue.clear()
        return error

    async def _serve(self) -> CloudError | RequestError:
        async with self._dial() as channel:
            call: Any = None
            try:
                for pause_s in (0.0, _REFUSAL_S):
                    call = channel.stream_stream(self._dialect.path)()
                    try:
                        welcome = await self._greet(call, pause_s)
                        break
                    except _OvertakenError:
                        continue
                else:
                    return CloudUnavailableError(self._unreachable())
                writer = asyncio.create_task(self._write(call, welcome))
                try:
                    return await self._read(call, welcome)
                finally:
                    writer.cancel()
                    await asyncio.gather(writer, return_exceptions=True)
            finally:
                call.cancel()

    def _dial(self) -> grpc.aio.Channel:
        options = [
            ("grpc.use_local_subchannel_pool", 1),  # redial at once: the back-off is the session's
            ("grpc.enable_retries", 0),
            ("grpc.max_receive_message_length", self._max_answer_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
        ]
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._address, options=options)
        return grpc.aio.secure_channel(self._address, self._credentials, options=options)

    async def _greet(self, call: Any, pause_s: float) -> Welcome:  # noqa: ANN401
        """Exchange Hello and Welcome; `pause_s` lets a refusal come in before anything is written."""
        hello = self._dialect.hello()
        connected = False
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await call.wait_for_connection()
                connected = True
                await self._pause(call, pause_s)
                await call.write(hello)
                raw = await call.read()
        except TimeoutError:
            if connected:
                raise CloudDeadlineError(
                    f"the cloud at {self._address} took the connection but did not answer within "
                    f"{self._connect_timeout_s:g} s; is it a Delta server, and is it hung?"
                ) from None
            raise CloudUnavailableError(self._unreachable()) from None
        except (grpc.RpcError, asyncio.InvalidStateError):
            raise await self._reason(call) from None
        if raw is grpc.aio.EOF:
            raise await self._reason(call)
        try:
            welcome = self._dialect.welcome(raw)
        except DecodeError:
            welcome = None
        if welcome is None:
            raise CloudAnswerError(
                f"the cloud at {self._address} did not answer the handshake with a welcome"
            )
        check_version(welcome.protocol_version, peer="cloud")
        self.greeted = True
        self._on_greeted(len(hello), len(raw))
        return welcome

    async def _reason(self, call: Any) -> CloudError | RequestError:  # noqa: ANN401
        """Why a call has ended."""
        code, details = await call.code(), await call.details()
        if details == _LOCAL_FAILURE:
            if not self.greeted:
                raise _OvertakenError
            return CloudUnavailableError(f"the connection to {self._address} was cut")
        if code == grpc.StatusCode.OK:
            return CloudUnavailableError(f"the cloud at {self._address} ended the session")
        trailing = await call.trailing_metadata()
        error = error_from_status(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details))
        if type(error) is CloudUnavailableError and not self.greeted:
            return CloudUnavailableError(self._unreachable())
        if type(error) is CloudUnavailableError:
            return CloudUnavailableError(f"the connection to {self._address} was cut")
        return error

    async def _pause(self, call: Any, pause_s: float) -> None:  # noqa: ANN401
        end = time.monotonic() + pause_s
        while not call.done() and time.monotonic() < end:
            await asyncio.sleep(_LOOK_S)

    def _unreachable(self) -> str:
        return f"no cloud answers at {self._address}; start one with `delta serve`, or check the address"

    async def _write(self, call: Any, welcome: Welcome) -> None:  # noqa: ANN401
        queue, write = self._queue, call.write
        try:
            while True:
                while queue:
                    pending = queue.popleft()
                    if pending.future.done():
                        self._live.pop(pending.sequence, None)
                        continue
                    try:
                        self._dialect.check(pending, welcome)
                    except RequestError as error:
                        self._live.pop(pending.sequence, None)
                        fail(pending.future, error)
                        continue
                    await write(pending.message)
                if not self.accepts:
                    await call.done_writing()
                    return
                self._wake = self._loop.create_future()
                await self._wake
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # the reader learns why

    async def _read(self, call: Any, welcome: Welcome) -> CloudError | RequestError:  # noqa: ANN401
        read, live, dialect = call.read, self._live, self._dialect
        while True:
            try:
                raw = await read()
            except grpc.RpcError:
                return await self._reason(call)
            if raw is grpc.aio.EOF:
                return await self._reason(call)
            try:
                answers, draining = dialect.answers(raw)
            except DecodeError:
                return CloudAnswerError("the cloud sent what is no message of the protocol; session ended")
            if draining:
                self.accepts = False
                self._rouse()
            rest = len(raw)
            for left, (sequence, answer) in zip(range(len(answers), 0, -1), answers, strict=True):
                size = rest // left  # answers that share a message share its bytes
                rest -= size
                pending = live.pop(sequence, None)
                if pending is None:
                    if sequence >= self._issued():
                        return CloudAnswerError("the cloud answered what was never sent; session ended")
                    continue  # late: the request has expired
                outcome = dialect.outcome(pending, answer, welcome, size)
                if isinstance(outcome, Answer):
                    resolve(pending.future, outcome)
                else:
                    fail(pending.future, outcome)

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # The loop's clock is time.monotonic on every platform that gRPC runs on.
        self._timer = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        """Fail what is late, and sleep until the next deadline."""
        self._timer = None
        now = time.monotonic()
        late = [pending for pending in self._live.values() if pending.deadline <= now]
        for pending in late:
            del self._live[pending.sequence]
            fail(pending.future, CloudDeadlineError(f"{pending.op}: no answer from {self._address} in time"))
        if self._live:
            self._arm(min(pending.deadline for pending in self._live.values()))
