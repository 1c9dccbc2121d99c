"""The transport over gRPC: one long stream a session and kind, reopened after a cut."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Self

import grpc
import torch
from torch import Tensor

from delta.errors import CloudDeadlineError, CloudError, CloudUnavailableError, DeltaError, RequestError
from delta.methods.schema import PREDICT
from delta.transport.base import Answer, Binding
from delta.transport.futures import fail, failed
from delta.wire.exchange import ExchangeRequest
from delta.wire.predict import PredictStreamRequest, encode_bits
from delta.wire.status import as_transport_error
from delta.wire.tensors import encode_named
from delta_client.connection import Connection, Dialect, Pending
from delta_client.dialects import ExchangeDialect, PredictDialect
from delta_client.loop import LoopThread

__all__ = ["GrpcTransport"]

_FIRST_BACKOFF_S, _LAST_BACKOFF_S = 0.1, 2.0
_DEADLINE_MS = 10_000
_MAX_DEADLINE_MS = 2**32 - 1


class _Lane:
    """The requests of one kind: queued by any thread, sent over one connection at a time.

    After a failed dial, requests fail at once until the back-off has passed; nothing is sent twice.
    """

    def __init__(self, thread: LoopThread, dial: Callable[[Callable[[], int]], Connection]) -> None:
        self._loop, self._ident = thread.loop, thread.ident
        self._dial = dial
        self._lock = threading.Lock()
        self._inbox: list[Pending] = []
        self._woken = False
        self._closed = False
        self._issued = 0
        self._connection: Connection | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._backoff_s = _FIRST_BACKOFF_S
        self._retry_at = 0.0
        self._last_error: CloudError | RequestError | None = None

    def submit(
        self, op: str, records: int, deadline: float, message: Callable[[int], bytes]
    ) -> Future[Answer]:
        """Queue a request of `records` numbers; `message` serialises it with its first."""
        future: Future[Answer] = Future()
        with self._lock:
            if self._closed:
                return failed(CloudUnavailableError("the session is closed; open another one"))
            sequence = self._issued
            self._issued += records
            self._inbox.append(Pending(op, future, sequence, records, message(sequence), deadline))
            wake, self._woken = not self._woken, True
        if wake:  # one wake-up for all that is submitted until the loop comes round
            if threading.get_ident() == self._ident:  # a callback of an earlier answer
                self._collect()
            else:
                self._loop.call_soon_threadsafe(self._collect)
        return future

    async def close(self) -> None:
        """Cut the connections; what is pending fails."""
        with self._lock:
            self._closed = True
            inbox, self._inbox = self._inbox, []
        for pending in inbox:
            fail(pending.future, CloudUnavailableError("the session was closed"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _collect(self) -> None:
        with self._lock:
            inbox, self._inbox = self._inbox, []
            self._woken = False
        if not inbox:
            return
        connection = self._connection
        if connection is None or not connection.accepts:
            if time.monotonic() < self._retry_at and self._last_error is not None:
                for pending in inbox:
                    fail(pending.future, self._last_error)
                return
            connection = self._connection = self._dial(lambda: self._issued)
            task = self._loop.create_task(self._keep(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        for pending in inbox:
            connection.send(pending)

    async def _keep(self, connection: Connection) -> None:
        error = await connection.run()
        if self._connection is connection:
            self._connection = None
        if connection.greeted:
            self._backoff_s = _FIRST_BACKOFF_S
        else:
            self._last_error = error
            self._retry_at = time.monotonic() + self._backoff_s
            self._backoff_s = min(2 * self._backoff_s, _LAST_BACKOFF_S)


class GrpcTransport:
    """A session with a cloud over gRPC.

    `predict` with packed bits goes over one `PredictStream`, every other operation over one `Exchange`; each
    is opened by its first request and reopened by the first after a cut. Nothing is sent twice by itself.

    Args:
        address: HOST:PORT.
        binding: the model, and the hashes that it must have.
        payload_bytes: packed bytes a record; none to take them from the first request.
        classes: logits a record that the cloud must state; none for any.
        connect_timeout_s: for dialling and greeting together, seconds.
        max_answer_bytes: largest message taken from the cloud.
        credentials: of the channel; none for plaintext.
    """

    def __init__(
        self,
        address: str,
        binding: Binding,
        *,
        payload_bytes: int | None = None,
        classes: int | None = None,
        connect_timeout_s: float = 5.0,
        max_answer_bytes: int = 64 * 2**20,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._address = address
        self._binding = binding
        self._payload_bytes = payload_bytes
        self._classes = classes
        self._connect_timeout_s = connect_timeout_s
        self._max_answer_bytes = max_answer_bytes
        self._credentials = credentials
        self._lock = threading.Lock()
        self._thread: LoopThread | None = LoopThread.shared()
        self._predict: _Lane | None = None
        self._exchange: _Lane | None = None
        self._handshake = (0, 0)

    @property
    def handshake_bytes(self) -> tuple[int, int]:
        """Serialised bytes (up, down) of all handshakes so far; (0, 0) before the first."""
        return self._handshake

    def submit(self, op: str, tensors: Mapping[str, Tensor], *, deadline_s: float) -> Future[Answer]:
        """Send one request and return at once; see `Transport.submit`."""
        if not deadline_s > 0:
            return failed(CloudDeadlineError(f"{op}: the deadline of {deadline_s:g} s has passed already"))
        deadline = time.monotonic() + deadline_s
        deadline_ms = min(max(1, round(deadline_s * 1e3)), _MAX_DEADLINE_MS)
        if deadline_ms == _DEADLINE_MS:
            deadline_ms = 0  # the session's default: not worth three bytes a message
        try:
            bits = tensors.get("bits")
            if op == PREDICT and bits is not None and len(tensors) == 1 and _is_packed(bits):
                lane, payload_bytes = self._predict_lane(bits.shape[1])
                data, count = encode_bits(bits, payload_bytes=payload_bytes), bits.shape[0]
                return lane.submit(
                    op,
                    count,
                    deadline,
                    lambda sequence: PredictStreamRequest(
                        first_id=sequence, count=count, bits=data, deadline_ms=deadline_ms
                    ).SerializeToString(),
                )
            named = encode_named(tensors)
            return self._exchange_lane().submit(
                op,
                1,
                deadline,
                lambda sequence: ExchangeRequest(
                    request_id=sequence, operation=op, tensors=named, deadline_ms=deadline_ms
                ).SerializeToString(),
            )
        except DeltaError as error:
            return failed(as_transport_error(error))

    def close(self) -> None:
        """End the session; pending futures fail with `CloudUnavailableError`. Idempotent."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is None:
            return
        for lane in (self._predict, self._exchange):
            if lane is not None:
                thread.run(lane.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _predict_lane(self, payload_bytes: int) -> tuple[_Lane, int]:
        with self._lock:
            if self._payload_bytes is None:
                self._payload_bytes = payload_bytes
            if self._predict is None:
                dialect = PredictDialect(
                    self._binding,
                    payload_bytes=self._payload_bytes,
                    classes=self._classes,
                    deadline_ms=_DEADLINE_MS,
                )
                self._predict = self._lane(dialect)
            return self._predict, self._payload_bytes

    def _exchange_lane(self) -> _Lane:
        with self._lock:
            if self._exchange is None:
                self._exchange = self._lane(ExchangeDialect(self._binding, deadline_ms=_DEADLINE_MS))
            return self._exchange

    def _lane(self, dialect: Dialect) -> _Lane:
        if self._thread is None:
            raise CloudUnavailableError("the session is closed; open another one")

        def dial(issued: Callable[[], int]) -> Connection:
            return Connection(
                self._address,
                dialect,
                credentials=self._credentials,
                connect_timeout_s=self._connect_timeout_s,
                max_answer_bytes=self._max_answer_bytes,
                issued=issued,
                greeted=self._count_handshake,
            )

        return _Lane(self._thread, dial)

    def _count_handshake(self, up: int, down: int) -> None:
        self._handshake = (self._handshake[0] + up, self._handshake[1] + down)


def _is_packed(bits: Tensor) -> bool:
    return bits.dtype == torch.uint8 and bits.dim() == 2
