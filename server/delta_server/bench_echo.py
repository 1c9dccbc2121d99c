"""A bare gRPC echo, the yardstick of `PredictStream`: raw bytes both ways, nothing else.

`python -m delta_server.bench_echo` prints its address and serves until its standard input closes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from functools import cache
from typing import Any

import grpc

from delta_server.app import loop_factory

__all__ = ["METHOD", "main"]

METHOD = ("delta.bench.Echo", "Stream")
"""Service and method; a request's first four bytes, little-endian, say how long its answer is to be."""


@cache
def _answer(size: int) -> bytes:
    return bytes(size)


async def _echo(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    read, write = context.read, context.write
    while (raw := await read()) is not grpc.aio.EOF:
        await write(_answer(int.from_bytes(raw[:4], "little")))


async def _serve() -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(METHOD[0], {METHOD[1]: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    stdin = sys.stdin.fileno()
    loop.add_reader(stdin, lambda: None if os.read(stdin, 4096) else stop.set())
    sys.stdout.write(f"echo listening on 127.0.0.1:{port}\n")
    sys.stdout.flush()
    await stop.wait()
    loop.remove_reader(stdin)
    await server.stop(None)


def main() -> None:
    """Serve until standard input closes."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    main()
