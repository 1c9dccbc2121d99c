"""`TrainingService` as gRPC handlers: tokens, deadlines, limits, draining."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from delta.errors import CloudMismatchError, CloudOverloadedError, CloudUnavailableError
from delta.wire.training import token_of
from delta_server.config import ServerConfig
from delta_server.guard import Context, deadline_of, guarded
from delta_server.models import ModelStore
from delta_server.training.calls import Answering, Calls, Reading, Unary
from delta_server.training.reading import Reader

__all__ = ["MESSAGE_BYTES", "TrainingService"]

MESSAGE_BYTES = 4 * 2**20
"""Largest message that a server with training takes, unless a bundle of its needs more."""

_UNARY = ("CreateDataset", "DeleteDataset", "StartTraining", "CancelTraining", "PromoteCheckpoint")
_ANSWERING = ("WatchTraining", "FetchLogits", "FetchCheckpoint")


class TrainingService:
    """The training of a server, or its refusal where it has no store; lives on the server's event loop.

    Args:
        config: settings; `training` is the folder of the store.
        models: where promoted models are served from.

    Raises:
        ConfigError: the store cannot be used.
    """

    def __init__(self, config: ServerConfig, models: ModelStore) -> None:
        self._config = config
        self._draining = asyncio.Event()
        self._open: Counter[str] = Counter()
        self._changes: set[asyncio.Task[Any]] = set()
        self._calls: Calls | None = None
        if config.training is not None:
            self._calls = Calls(
                config, config.training, models, draining=self._draining, message_bytes=MESSAGE_BYTES
            )

    def resume(self) -> None:
        """Go on with the jobs of an earlier server on the same store."""
        if self._calls is not None:
            self._calls.resume()

    def drain(self) -> None:
        """Take no more, and end the streams that are open."""
        self._draining.set()

    async def close(self) -> None:
        """End all processes; their jobs go on from their checkpoints at the next start."""
        self._draining.set()
        if self._changes:
            await asyncio.wait(self._changes)
        if self._calls is not None:
            await self._calls.close()

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The methods of the service by name."""
        return {
            **{name: grpc.unary_unary_rpc_method_handler(self._unary(name)) for name in _UNARY},
            **{name: grpc.unary_stream_rpc_method_handler(self._answering(name)) for name in _ANSWERING},
            "UploadReleases": grpc.stream_unary_rpc_method_handler(self._reading("UploadReleases")),
            "TrainInteractively": grpc.stream_stream_rpc_method_handler(self._reading("TrainInteractively")),
        }

    def _unary(self, name: str) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handler(raw: bytes, context: Context) -> bytes:
            async def run() -> bytes:
                calls, token = self._admit(context)
                deadline_of(context, longest_s=self._config.max_deadline_s)
                call: Unary = calls.unary[name]
                # A client that hangs up does not leave a change half done.
                task = asyncio.ensure_future(call(token, raw))
                self._changes.add(task)
                task.add_done_callback(self._changes.discard)
                return await asyncio.shield(task)

            return await guarded(context, run)

        return handler

    def _answering(self, name: str) -> Callable[[bytes, Context], Awaitable[None]]:
        async def handler(raw: bytes, context: Context) -> None:
            async def run() -> None:
                calls, token = self._admit(context)
                call: Answering = calls.answering[name]
                with self._stream(calls.bearer(token)):
                    await call(token, raw, context)

            await guarded(context, run)

        return handler

    def _reading(self, name: str) -> Callable[[object, Context], Awaitable[bytes | None]]:
        async def handler(_: object, context: Context) -> bytes | None:
            async def run() -> bytes | None:
                calls, token = self._admit(context)
                call: Reading = calls.reading[name]
                with self._stream(calls.bearer(token)):
                    reader = Reader(context, self._draining)
                    try:
                        return await call(token, reader, context)
                    finally:
                        reader.close()

            return await guarded(context, run)

        return handler

    def _admit(self, context: Context) -> tuple[Calls, bytes]:
        if self._calls is None:
            raise CloudMismatchError("this cloud does not train; its operator starts it with --training DIR")
        if self._draining.is_set():
            raise CloudUnavailableError("the server is stopping; connect again later")
        return self._calls, token_of(context.invocation_metadata())

    @contextmanager
    def _stream(self, bearer: str) -> Iterator[None]:
        if self._open.total() >= self._config.max_streams:
            raise CloudOverloadedError(
                f"{self._config.max_streams} training streams are open already; connect again later"
            )
        if self._open[bearer] >= self._config.streams_each:
            raise CloudOverloadedError(
                f"this tenant has {self._config.streams_each} training streams open already; end one first"
            )
        self._open[bearer] += 1
        try:
            yield
        finally:
            self._open[bearer] -= 1
            if not self._open[bearer]:
                del self._open[bearer]
