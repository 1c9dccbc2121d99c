"""`PredictStream` against a bare gRPC echo of the same payload: the transport's own cost, measured."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
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
    rounds: int = 7,
    seconds: float = 0.5,
) -> dict[str, Any]:
    """Measure both in turn (A B A B), a warm-up round first.

    Ours is the whole way of a user's request: `submit` on one thread, a future's result back on it; the cloud
    model costs nothing. The echo's client and server do nothing but read and write raw messages of as many
    bytes, the client all on its event loop.

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
        `rows`: for each setting `records_per_message`, `in_flight`, and records per second of ours and of the
        echo (median, min, max) with their `ratio`, the median of the rounds' own ratios; and
        `bytes_per_record`: up and down, the handshake included once.
    """
    rows = []
    with (
        GrpcTransport(address, binding, payload_bytes=payload_bytes) as transport,
        _Echo(echo_address) as echo,
    ):
        for count in records:
            bits = torch.zeros(count, payload_bytes, dtype=torch.uint8)
            answer = transport.submit(PREDICT, {"bits": bits}, deadline_s=_DEADLINE_S).result()
            for window in in_flight:

                def ours(seconds: float, bits: torch.Tensor = bits, window: int = window) -> float:
                    return _drive(transport, bits, window=window, seconds=seconds)

                def bare(seconds: float, answer: Answer = answer, window: int = window) -> float:
                    return echo.drive(answer.bytes_up, answer.bytes_down, window=window, seconds=seconds)

                rows.append(
                    {
                        "records_per_message": count,
                        "in_flight": window,
                        **_compare(ours, bare, scale=count, rounds=rounds, seconds=seconds),
                    }
                )
        up, down = _bytes_per_record(address, binding, payload_bytes, messages=1000)
    return {
        "payload_bytes": payload_bytes,
        "classes": classes,
        "rows": rows,
        "bytes_per_record": {"up": up, "down": down},
    }


def _compare(
    ours: Callable[[float], float], bare: Callable[[float], float], *, scale: int, rounds: int, seconds: float
) -> dict[str, Any]:
    ours(seconds / 2)
    bare(seconds / 2)
    gc.collect()
    mine, theirs = [], []
    for _ in range(rounds):
        mine.append(ours(seconds) * scale)
        theirs.append(bare(seconds) * scale)
    return {
        "records_per_s": _spread(mine),
        "echo_records_per_s": _spread(theirs),
        "ratio": statistics.median(a / b for a, b in zip(mine, theirs, strict=True)),
    }


def _spread(rates: list[float]) -> dict[str, float]:
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}


def _drive(transport: GrpcTransport, bits: torch.Tensor, *, window: int, seconds: float) -> float:
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
