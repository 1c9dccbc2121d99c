"""The transport without a network: operations of a cloud half run on a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from torch import Tensor

from delta.errors import CloudDeadlineError, CloudUnavailableError, DeltaError
from delta.methods.schema import PREDICT, CloudHalf, is_predict, run_operation
from delta.transport.base import Answer, Binding
from delta.transport.futures import fail, failed, resolve
from delta.transport.timer import Timer, TimerThread
from delta.wire.sizes import answer_bytes, handshake_bytes, request_bytes
from delta.wire.status import as_transport_error

__all__ = ["InProcessTransport"]


@dataclass(frozen=True)
class _Request:
    op: str
    tensors: dict[str, Tensor]
    sequence: int
    bytes_up: int
    future: Future[Answer]
    timer: Timer


class InProcessTransport:
    """A session with a cloud half of this process; bytes are what the gRPC messages would weigh.

    Requests run one after the other, in the order submitted; expired and cancelled ones never run.

    Args:
        half: the cloud half.
        binding: what a session with it is bound to; it counts in `handshake_bytes`.
    """

    def __init__(self, half: CloudHalf, *, binding: Binding | None = None) -> None:
        self._half = half
        self._binding = binding or Binding()
        self._lock = threading.Lock()
        self._sequence = 0
        self._closed = False
        self._handshake = (0, 0)
        self._pending: set[Future[Answer]] = set()
        self._queue: SimpleQueue[_Request | None] = SimpleQueue()
        self._timers = TimerThread(name="delta-inprocess-deadlines")
        self._thread: threading.Thread | None = None

    @property
    def handshake_bytes(self) -> tuple[int, int]:
        """What opening the session would weigh (up, down); (0, 0) before the first request."""
        return self._handshake

    def submit(self, op: str, tensors: Mapping[str, Tensor], *, deadline_s: float) -> Future[Answer]:
        """Queue one request; see `Transport.submit`."""
        if deadline_s <= 0:
            return failed(CloudDeadlineError(f"{op}: the deadline of {deadline_s:g} s has passed already"))
        try:
            weight = request_bytes(op, tensors, sequence=self._sequence)
        except DeltaError as error:
            return failed(as_transport_error(error))
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        future: Future[Answer] = Future()
        late = CloudDeadlineError(f"{op}: no answer within {deadline_s:g} s")
        with self._lock:
            if self._closed:
                return failed(CloudUnavailableError("the session is closed; open another one"))
            self._open()
            timer = self._timers.call_at(time.monotonic() + deadline_s, lambda: self._fail(future, late))
            self._pending.add(future)
            self._queue.put(_Request(op, copies, self._sequence, weight, future, timer))
            self._sequence += next(iter(copies.values())).shape[0] if op == PREDICT and copies else 1
        return future

    def close(self) -> None:
        """End the session: the running operation is waited for, what else is pending fails."""
        with self._lock:
            self._closed = True
            pending = list(self._pending)
        for future in pending:
            self._fail(future, CloudUnavailableError("the session was closed before the answer came"))
        self._timers.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name="delta-inprocess", daemon=True)
        self._thread.start()
        operation = self._half.operations.get(PREDICT)
        payload_bytes = classes = 0
        if operation is not None and is_predict(operation):
            payload_bytes = int(operation.inputs["bits"].shape[1])
            classes = int(operation.outputs["logits"].shape[1])
        self._handshake = handshake_bytes(
            self._binding, payload_bytes=payload_bytes, classes=classes, max_records=4096
        )

    def _fail(self, future: Future[Answer], error: BaseException) -> None:
        self._pending.discard(future)
        fail(future, error)

    def _run(self) -> None:
        while (request := self._queue.get()) is not None:
            if not request.future.done():
                self._answer(request)
            request.timer.cancel()
            self._pending.discard(request.future)

    def _answer(self, request: _Request) -> None:
        start = time.perf_counter()
        try:
            outputs = run_operation(self._half, request.op, request.tensors)
            outputs = {name: tensor.detach().to("cpu") for name, tensor in outputs.items()}
            cloud_ms = (time.perf_counter() - start) * 1e3
            down = answer_bytes(request.op, outputs, sequence=request.sequence, cloud_ms=cloud_ms)
        except Exception as error:  # whatever a cloud half raises, the caller gets an error of ours
            fail(request.future, as_transport_error(error))
            return
        resolve(request.future, Answer(outputs, cloud_ms, request.bytes_up, down))
