"""Calls of one service, a message at a time: counted, bounded in time, and ended with one clear error."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from delta.errors import (
    CloudAnswerError,
    CloudDeadlineError,
    CloudError,
    CloudMismatchError,
    CloudUnavailableError,
    RequestError,
)
from delta.transport.timer import TimerThread
from delta.wire.services import method_path
from delta.wire.status import ERROR_KEY, error_from_status

__all__ = ["Answers", "Calls", "Feed", "PendingAnswer"]

_QUEUED = 4  # messages that wait for the network: more would only hold memory

M = TypeVar("M", bound=Message)


class Calls:
    """A channel to one service; messages are serialised here, so that their bytes can be counted.

    Args:
        address: HOST:PORT.
        service: full name.
        metadata: sent with every call.
        credentials: of the channel; none for plaintext.
        timeout_s: for a call, and for each message of a stream, seconds.
        max_answer_bytes: largest message taken from the cloud.
        missing: what to say if the cloud has no such service.

    Attributes:
        bytes_up: serialised messages sent so far, bytes.
        bytes_down: serialised messages received so far, bytes.
        address: as given.
        timeout_s: as given.
    """

    def __init__(
        self,
        address: str,
        service: str,
        *,
        metadata: tuple[tuple[str, str], ...],
        credentials: grpc.ChannelCredentials | None,
        timeout_s: float,
        max_answer_bytes: int,
        missing: str,
    ) -> None:
        # gRPC tells every closed connection on standard error unless it is told otherwise first.
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),  # the back-off is the caller's
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.max_receive_message_length", max_answer_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
        ]
        self._channel = (
            grpc.insecure_channel(address, options=options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options=options)
        )
        self._service = service
        self._metadata = metadata
        self._missing = missing
        self._timers = TimerThread(name="delta-client-deadlines")
        self.address = address
        self.timeout_s = timeout_s
        self.bytes_up = 0
        self.bytes_down = 0

    def close(self) -> None:
        """Cut what is in progress; idempotent."""
        self._channel.close()
        self._timers.close()

    def unary(self, method: str, request: Message, answer: type[M]) -> M:
        """One message up, one down."""
        raw = request.SerializeToString()
        self.bytes_up += len(raw)
        call: Any = self._channel.unary_unary(method_path(self._service, method))
        try:
            data = call(raw, timeout=self.timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self.error_of(error, began=False) from None
        except ValueError:  # a closed channel
            raise CloudUnavailableError("the connection is closed; open another one") from None
        return self.parsed(data, answer)

    def download(
        self, method: str, request: Message, answer: type[M], *, whole_s: float | None = None
    ) -> Answers[M]:
        """One message up, a stream of them down; `whole_s`: for all of it, seconds, however often some come."""
        raw = request.SerializeToString()
        self.bytes_up += len(raw)
        call = self._start(self._channel.unary_stream, method, raw, timeout_s=whole_s)
        return Answers(self, call, answer, whole_s=whole_s)

    def upload(self, method: str, feed: Feed, answer: type[M]) -> PendingAnswer[M]:
        """A stream of messages up, one down."""
        call = self._start(lambda path: self._channel.stream_unary(path).future, method, feed.messages(self))
        call.add_done_callback(feed.drop)
        return PendingAnswer(self, call, answer)

    def exchange(self, method: str, feed: Feed, answer: type[M]) -> Answers[M]:
        """Streams of messages both ways."""
        call = self._start(self._channel.stream_stream, method, feed.messages(self))
        call.add_done_callback(feed.drop)
        return Answers(self, call, answer)

    def parsed(self, raw: bytes, kind: type[M]) -> M:
        """A received message, counted.

        Raises:
            CloudAnswerError: it is none of that kind.
        """
        self.bytes_down += len(raw)
        try:
            return kind.FromString(raw)
        except DecodeError:
            raise CloudAnswerError(
                f"the cloud at {self.address} sent what is no message of the protocol"
            ) from None

    def within(self, call: Any) -> _Watchdog:  # noqa: ANN401
        """Cancels a call that does not come on in time."""
        return _Watchdog(self._timers, call, self.timeout_s)

    def late(self) -> CloudDeadlineError:
        """The error of a cloud that is there and says nothing."""
        return CloudDeadlineError(
            f"the cloud at {self.address} did not answer within {self.timeout_s:g} s; is it hung?"
        )

    def error_of(self, error: Any, *, began: bool) -> CloudError | RequestError:  # noqa: ANN401
        """The error of a failed call; `began`: the cloud had answered something before."""
        reason = error_from_status(error)
        if isinstance(error, grpc.Call):
            if any(key == ERROR_KEY for key, _ in error.trailing_metadata() or ()):
                return reason  # the cloud's own words
            if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                return CloudMismatchError(self._missing)
        if type(reason) is CloudDeadlineError:
            return self.late()
        if type(reason) is CloudUnavailableError:
            return CloudUnavailableError(
                f"the connection to {self.address} was cut"
                if began
                else f"no cloud answers at {self.address}; start one with `delta serve`, or check the address"
            )
        return reason

    def _start(self, kind: Any, method: str, request: Any, *, timeout_s: float | None = None) -> Any:  # noqa: ANN401
        try:
            call = kind(method_path(self._service, method))
            return call(request, timeout=timeout_s, metadata=self._metadata)
        except ValueError:  # a closed channel
            raise CloudUnavailableError("the connection is closed; open another one") from None


class _Watchdog:
    """Cancels a call unless the block ends in time.

    Attributes:
        barked: whether it did.
    """

    def __init__(self, timers: TimerThread, call: Any, timeout_s: float) -> None:  # noqa: ANN401
        self.barked = False
        self._call = call
        self._timers = timers
        self._timeout_s = timeout_s

    def __enter__(self) -> Self:
        self._timer = self._timers.call_at(time.monotonic() + self._timeout_s, self._bark)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def _bark(self) -> None:
        self.barked = True
        self._call.cancel()


class Answers(Generic[M]):
    """The cloud's messages of one call, each awaited so long and no longer; a context that ends the call."""

    def __init__(
        self,
        calls: Calls,
        call: Any,  # noqa: ANN401
        kind: type[M],
        *,
        whole_s: float | None = None,
    ) -> None:
        self._calls = calls
        self._call = call
        self._kind = kind
        self._whole_s = whole_s
        self._began = False

    def next(self) -> M | None:
        """The next one; none where the cloud has ended the stream in order.

        Raises:
            CloudError: the call failed or was cut, no message came in time, or what came is none.
            RequestError: the cloud refuses the request.
        """
        with self._calls.within(self._call) as dog:
            try:
                raw = next(self._call)
            except StopIteration:
                return None
            except grpc.RpcError as error:
                raise self._error_of(error, late=dog.barked) from None
        self._began = True
        return self._calls.parsed(raw, self._kind)

    def _error_of(self, error: Any, *, late: bool) -> CloudError | RequestError:  # noqa: ANN401
        if late:
            return self._calls.late()
        reason = self._calls.error_of(error, began=self._began)
        if self._began and self._whole_s is not None and type(reason) is CloudDeadlineError:
            return CloudDeadlineError(
                f"the cloud at {self._calls.address} sends so slowly that {self._whole_s:.3g} s were not enough; "
                "run again to fetch it anew"
            )
        return reason

    def cancel(self) -> None:
        """End the call."""
        self._call.cancel()

    def __iter__(self) -> Iterator[M]:
        while (message := self.next()) is not None:
            yield message

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()


class PendingAnswer(Generic[M]):
    """The one answer to a stream of messages; a context that ends the call."""

    def __init__(self, calls: Calls, call: Any, kind: type[M]) -> None:  # noqa: ANN401
        self._calls = calls
        self._call = call
        self._kind = kind

    def result(self) -> M:
        """Wait for it.

        Raises:
            CloudError: the call failed or was cut, or no answer came in time.
            RequestError: the cloud refuses what was sent.
        """
        try:
            raw = self._call.result(timeout=self._calls.timeout_s)
        except grpc.FutureTimeoutError:
            raise self._calls.late() from None
        except grpc.FutureCancelledError:
            raise CloudUnavailableError("the connection is closed; open another one") from None
        except grpc.RpcError as error:
            raise self._calls.error_of(error, began=False) from None
        return self._calls.parsed(raw, self._kind)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()


class Feed:
    """Messages on their way up: written by the caller, taken by gRPC's thread as the network lets it."""

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._ended = False

    def put(self, message: Message, *, timeout_s: float) -> bool:
        """Queue one; False once the call has ended.

        Raises:
            TimeoutError: nothing went out for `timeout_s`.
        """
        raw = message.SerializeToString()
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended or len(self._queue) < _QUEUED, timeout_s):
                raise TimeoutError
            if self._ended:
                return False
            self._queue.append(raw)
            self._changed.notify_all()
        return True

    def end(self) -> None:
        """No more will come; what is queued still goes. Idempotent."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def drop(self, _call: object = None) -> None:
        """The call has ended: nothing more goes."""
        with self._changed:
            self._queue.clear()
        self.end()

    def messages(self, calls: Calls) -> Iterator[bytes]:
        """What gRPC sends."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._queue)
                if not self._queue:
                    return
                raw = self._queue.popleft()
                self._changed.notify_all()
            calls.bytes_up += len(raw)
            yield raw
