"""A transport behind a simulated link: a bandwidth and a delay in each direction."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from torch import Tensor

from delta.errors import CloudDeadlineError, CloudUnavailableError, ConfigError, DeltaError
from delta.transport.base import Answer, Transport
from delta.transport.futures import fail, failed, resolve
from delta.transport.timer import TimerThread
from delta.wire.sizes import request_bytes
from delta.wire.status import as_transport_error

__all__ = ["ShapedTransport"]


class _Direction:
    """One direction of the link: messages leave one after the other at the link's rate."""

    def __init__(self, *, bytes_per_s: float, delay_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._delay_s = delay_s
        self._free_at = 0.0
        self._lock = threading.Lock()

    def arrival(self, size: int) -> float:
        """When a message of `size` bytes that is sent now arrives, seconds of `time.monotonic`."""
        with self._lock:
            self._free_at = max(time.monotonic(), self._free_at) + size / self._bytes_per_s
            return self._free_at + self._delay_s


class ShapedTransport:
    """Wraps a transport, and delays each message by size / bandwidth + delay, in each direction.

    A message waits until the one before it has left; the two directions are independent. Opening the session
    is not delayed. Closing it closes the inner transport.

    Args:
        inner: the transport that does the work.
        bandwidth_mbps: of each direction, 10⁶ bits per second.
        delay_ms: one-way delay of each direction, milliseconds.

    Raises:
        ConfigError: a bandwidth that is not above zero, or a negative delay.
    """

    def __init__(self, inner: Transport, *, bandwidth_mbps: float, delay_ms: float) -> None:
        if not bandwidth_mbps > 0 or not delay_ms >= 0:
            raise ConfigError(
                f"a link needs a bandwidth above 0 Mbit/s and a delay of at least 0 ms, "
                f"got {bandwidth_mbps:g} and {delay_ms:g}"
            )
        self._inner = inner
        rate = bandwidth_mbps * 1e6 / 8
        self._up = _Direction(bytes_per_s=rate, delay_s=delay_ms / 1e3)
        self._down = _Direction(bytes_per_s=rate, delay_s=delay_ms / 1e3)
        self._timers = TimerThread(name="delta-link")
        self._lock = threading.Lock()
        self._pending: set[Future[Answer]] = set()
        self._closed = False

    @property
    def handshake_bytes(self) -> tuple[int, int]:
        """Of the inner transport."""
        return self._inner.handshake_bytes

    def submit(self, op: str, tensors: Mapping[str, Tensor], *, deadline_s: float) -> Future[Answer]:
        """Send one request over the link; see `Transport.submit`."""
        if deadline_s <= 0:
            return failed(CloudDeadlineError(f"{op}: the deadline of {deadline_s:g} s has passed already"))
        try:
            size = request_bytes(op, tensors, sequence=0)
        except DeltaError as error:
            return failed(as_transport_error(error))
        sent = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        deadline = time.monotonic() + deadline_s
        future: Future[Answer] = Future()
        late = CloudDeadlineError(f"{op}: no answer within {deadline_s:g} s")
        with self._lock:
            if self._closed:
                return failed(CloudUnavailableError("the session is closed; open another one"))
            self._pending.add(future)
        timer = self._timers.call_at(deadline, lambda: self._settle(future, late))
        future.add_done_callback(lambda _: timer.cancel())

        def arrive() -> None:
            if not future.done():
                inner = self._inner.submit(op, sent, deadline_s=deadline - time.monotonic())
                inner.add_done_callback(lambda done: self._return(done, future))

        self._timers.call_at(self._up.arrival(size), arrive)
        return future

    def close(self) -> None:
        """End the session and the inner one; idempotent."""
        with self._lock:
            self._closed = True
            pending = list(self._pending)
        for future in pending:
            self._settle(future, CloudUnavailableError("the session was closed before the answer came"))
        self._timers.close()
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _return(self, done: Future[Answer], future: Future[Answer]) -> None:
        error = done.exception() if not done.cancelled() else CloudUnavailableError("it was cancelled")
        outcome = error or done.result()
        size = outcome.bytes_down if isinstance(outcome, Answer) else 0
        self._timers.call_at(self._down.arrival(size), lambda: self._settle(future, outcome))

    def _settle(self, future: Future[Answer], outcome: Answer | BaseException) -> None:
        self._pending.discard(future)
        if isinstance(outcome, Answer):
            resolve(future, outcome)
        else:
            fail(future, outcome)
