"""`PredictStream` against a bare gRPC echo of the same payload: the transport's own cost, measured."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import grpc
import torch

from delta.methods.schema import PREDICT
from delta.transport.base import Answer, Binding
from delta_client.loop import LoopThread
from delta_client.transport import GrpcTransport

__all__ = ["measure_stream"]

_ECHO = "/delta.bench.Echo/Stream"
_DEADLINE_S = 10.0


def measure_stream(
    address: str,
    echo_address: str,
    binding: Binding,
    *,
    payload_bytes: int = 128,
    classes: int = 10,
    records: Sequence[int] = (1, 8, 64),
    in_flight: Sequence[int] = (1, 8, 64),
    rounds: int = 15,
    seconds: float = 0.2,
) -> dict[str, Any]:
    """Measure both in turn (A B A B), a warm-up round first.

    Ours is `GrpcTransport.submit` and its futures, driven twice: `callback` sends the next request when an
    answer arrives, on the event loop's thread, as the echo does; `blocking` is one user's thread that waits
    for the oldest answer. The cloud model costs nothing. The echo's client and server do nothing but read and
    write raw messages of as many bytes, the client all on its event loop, with a reader and a writer.

    Args:
        address: HOST:PORT of a server that serves `delta.bench.zero_method`.
        echo_address: HOST:PORT of `delta_server.bench_echo`.
        binding: of the served bundle.
        payload_bytes: packed bytes a record.
        classes: logits a record.
        records: records a message.
        in_flight: messages in flight.
        rounds: of which the median is taken.
        seconds: of each measurement.

    Returns:
        `rows`: for each setting `records_per_message`, `in_flight`, and under `callback`, `blocking` and `echo`
        records per second (`median`, `min`, `max`), the first two with `ratio`, the median over the rounds of
        ours divided by the echo's; and `bytes_per_record` `{up, down}`, the handshake included once.
    """
    rows = []
    with (
        GrpcTransport(address, binding, payload_bytes=payload_bytes, classes=classes) as transport,
        _Echo(echo_address) as echo,
    ):
        for count in records:
            bits = torch.zeros(count, payload_bytes, dtype=torch.uint8)
            answer = transport.submit(PREDICT, {"bits": bits}, deadline_s=_DEADLINE_S).result()
            up, down = answer.bytes_up, answer.bytes_down
            for window in in_flight:
                drivers = {
                    "echo": partial(echo.drive, up, down, window=window),
                    "callback": partial(_drive_callback, transport, bits, window=window),
                    "blocking": partial(_drive_blocking, transport, bits, window=window),
                }
                rates = _alternate(drivers, rounds=rounds, seconds=seconds)
                rows.append({"records_per_message": count, "in_flight": window, **_summary(rates, count)})
    up_rate, down_rate = _bytes_per_record(address, binding, payload_bytes, messages=1000)
    return {
        "payload_bytes": payload_bytes,
        "classes": classes,
        "rows": rows,
        "bytes_per_record": {"up": up_rate, "down": down_rate},
    }


def _alternate(
    drivers: Mapping[str, Callable[..., float]], *, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Messages per second of each driver in each round."""
    for drive in drivers.values():
        drive(seconds=seconds / 2)
    gc.collect()
    rates: dict[str, list[float]] = {name: [] for name in drivers}
    for _ in range(rounds):
        for name, drive in drivers.items():
            rates[name].append(drive(seconds=seconds))
    return rates


def _summary(rates: Mapping[str, list[float]], records: int) -> dict[str, Any]:
    """Records per second of each driver, and the ratio of ours to the echo's of the same round."""
    found: dict[str, Any] = {}
    for name, mine in rates.items():
        found[name] = _spread([rate * records for rate in mine])
        if name != "echo":
            found[name]["ratio"] = statistics.median(a / b for a, b in zip(mine, rates["echo"], strict=True))
    return found


def _spread(rates: list[float]) -> dict[str, float]:
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}


def _drive_blocking(transport: GrpcTransport, bits: torch.Tensor, *, window: int, seconds: float) -> float:
    """Messages per second with `window` of them in flight, as a user's thread sees them."""
    pending: deque[Future[Answer]] = deque()
    tensors = {"bits": bits}
    start = time.perf_counter()
    end = start + seconds
    done = 0
    while time.perf_counter() < end:
        while len(pending) < window:
            pending.append(transport.submit(PREDICT, tensors, deadline_s=_DEADLINE_S))
        pending.popleft().result()
        done += 1
    while pending:
        pending.popleft().result()
        done += 1
    return done / (time.perf_counter() - start)


def _drive_callback(transport: GrpcTransport, bits: torch.Tensor, *, window: int, seconds: float) -> float:
    """Messages per second with `window` of them in flight, each answer sending the next request."""
    tensors = {"bits": bits}
    finished: Future[int] = Future()
    sent = done = 0
    start = time.perf_counter()
    end = start + seconds

    def send() -> None:
        nonlocal sent
        sent += 1
        transport.submit(PREDICT, tensors, deadline_s=_DEADLINE_S).add_done_callback(receive)

    def receive(future: Future[Answer]) -> None:
        nonlocal done
        done += 1
        if future.exception() is not None:
            finished.set_exception(future.exception())
        elif time.perf_counter() < end:
            send()
        elif done == sent:
            finished.set_result(done)

    def start_all(
        warm: Future[Answer],
    ) -> None:  # on the loop's thread too: there is one writer to the counts
        for _ in range(window):
            send()

    transport.submit(PREDICT, tensors, deadline_s=_DEADLINE_S).add_done_callback(start_all)
    return finished.result() / (time.perf_counter() - start)


def _bytes_per_record(
    address: str, binding: Binding, payload_bytes: int, *, messages: int
) -> tuple[float, float]:
    """Serialised bytes a record of a session that sends one record a message, its handshake included."""
    bits = torch.zeros(1, payload_bytes, dtype=torch.uint8)
    with GrpcTransport(address, binding, payload_bytes=payload_bytes) as transport:
        futures = [transport.submit(PREDICT, {"bits": bits}, deadline_s=_DEADLINE_S) for _ in range(messages)]
        answers = [future.result() for future in futures]
        up, down = transport.handshake_bytes
    return (
        (up + sum(answer.bytes_up for answer in answers)) / messages,
        (down + sum(answer.bytes_down for answer in answers)) / messages,
    )


class _Echo:
    """One stream to the bare echo, on the same event loop thread as ours."""

    def __init__(self, address: str) -> None:
        self._thread = LoopThread.shared()
        self._address = address

    def __enter__(self) -> _Echo:
        self._thread.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.run(self._channel.close())

    def drive(self, up: int, down: int, *, window: int, seconds: float) -> float:
        """Messages per second with `window` of them in flight."""
        return self._thread.run(self._drive(down.to_bytes(4, "little") + bytes(up - 4), window, seconds))

    async def _open(self) -> None:
        self._channel = grpc.aio.insecure_channel(self._address)
        self._call: Any = self._channel.stream_stream(_ECHO)()
        await self._call.wait_for_connection()

    async def _drive(self, request: bytes, window: int, seconds: float) -> float:
        """A writer and a reader side by side; the writer holds while `window` messages are out."""
        call, room = self._call, asyncio.Semaphore(window)
        start = time.perf_counter()
        end = start + seconds
        sent, more = 0, True

        async def write() -> None:
            nonlocal sent
            while True:
                await room.acquire()
                if not more:
                    return
                sent += 1
                await call.write(request)

        writer = asyncio.create_task(write())
        done = 0
        while more or done < sent:
            await call.read()
            done += 1
            more = more and time.perf_counter() < end
            room.release()
        await writer
        return done / (time.perf_counter() - start)
