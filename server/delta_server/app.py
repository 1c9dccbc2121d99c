"""The server: start, drain, stop; on its own in a process, or on a thread of another one."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from delta.errors import ConfigError, DeltaError
from delta.wire.services import SERVICES
from delta_server.batcher import Batcher
from delta_server.config import ServerConfig
from delta_server.log import event
from delta_server.models import ModelStore
from delta_server.services import Services
from delta_server.training.service import MESSAGE_BYTES, TrainingService

__all__ = ["DeltaServer", "ServerThread", "loop_factory", "run"]

_METADATA_BYTES = 8192


class DeltaServer:
    """A gRPC server that hosts the cloud parts of bundles; lives on one event loop.

    Args:
        config: settings.
        models: the hosted models.
        credentials: of the channel; none for plaintext.
    """

    def __init__(
        self, config: ServerConfig, models: ModelStore, *, credentials: grpc.ServerCredentials | None = None
    ) -> None:
        self._config = config
        self._models = models
        self._credentials = credentials
        self._stopping: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen; returns HOST:PORT.

        Raises:
            ConfigError: the address is not free or not ours.
        """
        config = self._config
        self._training = TrainingService(config, self._models)
        self._batcher = Batcher(
            asyncio.get_running_loop(),
            max_batch=config.max_batch,
            max_delay_s=config.max_delay_ms / 1e3,
            queue_records=config.queue_records,
        )
        self._services = Services(config, self._models, self._batcher, self._training)
        self._server = grpc.aio.server(options=_options(config, self._models))
        self._server.add_generic_rpc_handlers(self._services.handlers())
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        host = f"[{config.host}]" if ":" in config.host else config.host
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(f"{host}:{config.port}")
            else:
                port = self._server.add_secure_port(f"{host}:{config.port}", self._credentials)
        except RuntimeError:
            port = 0
        if not port:
            self._batcher.close()
            await self._training.close()
            raise ConfigError(
                f"cannot listen on {host}:{config.port}: the port is in use or the address is not this "
                "machine's; choose another, or port 0 for any free one"
            )
        await self._server.start()
        for name in ("", *SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._training.resume()
        return f"{host}:{port}"

    @property
    def sessions(self) -> Collection[object]:
        """The open streams."""
        return self._services.sessions

    async def stop(self) -> None:
        """Drain: refuse what is new, finish what is in flight, then stop; idempotent."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._drain())
        await asyncio.shield(self._stopping)

    async def _drain(self) -> None:
        event("draining", records=self._batcher.admitted)
        await self._health.enter_graceful_shutdown()
        self._services.drain()
        training = asyncio.create_task(self._training.close())
        await self._server.stop(self._config.grace_s)
        await training
        await asyncio.get_running_loop().run_in_executor(None, self._batcher.close)
        event("stopped")


class ServerThread:
    """A server on a thread of this process, as a context manager; for tests and notebooks.

    Args:
        config: settings; signals are left alone.

    Attributes:
        address: HOST:PORT, once entered.
        loop: the server's event loop.
        server: the server itself.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._models = ModelStore.load(config)
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main()), name="delta-server", daemon=True
        )
        self.address = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def models(self) -> ModelStore:
        """The hosted models."""
        return self._models

    def stop(self) -> None:
        """Drain and end the thread; idempotent."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    async def _main(self) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.server = server = DeltaServer(self._config, self._models)
        try:
            self.address = await server.start()
        except DeltaError as error:
            self._error = error
            return
        finally:
            self._started.set()
        await self._stop.wait()
        await server.stop()


def run(
    config: ServerConfig,
    *,
    credentials: grpc.ServerCredentials | None = None,
    listening: Callable[[str, list[str]], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Prints one line once it listens.

    Args:
        config: settings.
        credentials: of the channel; none for plaintext.
        listening: told the address and the models' names once it listens.

    Raises:
        DeltaError: a bundle, a plug-in, the store or the address is not usable.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    models = ModelStore.load(config)
    gc.freeze()  # what is loaded now lives as long as the process: the collector need not walk it again
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(config, models, credentials, listening))


async def _serve(
    config: ServerConfig,
    models: ModelStore,
    credentials: grpc.ServerCredentials | None,
    listening: Callable[[str, list[str]], None] | None,
) -> None:
    server = DeltaServer(config, models, credentials=credentials)
    address = await server.start()
    try:
        await _until_told(address, config, models, listening, plaintext=credentials is None)
    finally:
        await server.stop()


async def _until_told(
    address: str,
    config: ServerConfig,
    models: ModelStore,
    listening: Callable[[str, list[str]], None] | None,
    *,
    plaintext: bool,
) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if config.stop_on_stdin:
        loop.add_reader(
            sys.stdin.fileno(), lambda: stop.set() if not os.read(sys.stdin.fileno(), 4096) else None
        )
    if config.port_file is not None:
        _write_atomically(config.port_file, address)
    if listening is not None:
        listening(address, sorted(models.models))
    channel = "plaintext" if plaintext else "TLS"
    names = ", ".join(sorted(models.models)) or "none"
    trains = "training, " if config.training is not None else ""
    sys.stdout.write(f"delta-server listening on {address} (models: {names}, {trains}tee: none, {channel})\n")
    sys.stdout.flush()
    event("listening", address=address, models=names, device=config.device, channel=channel)
    await stop.wait()
    if config.stop_on_stdin:
        loop.remove_reader(sys.stdin.fileno())


def _options(config: ServerConfig, models: ModelStore) -> list[tuple[str, int]]:
    largest = max((model.max_message_bytes for model in models.models.values()), default=0)
    if config.training is not None:
        largest = max(largest, MESSAGE_BYTES)
    return [
        ("grpc.so_reuseport", 0),  # a port in use must fail, not be shared
        ("grpc.max_receive_message_length", largest),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", _METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * _METADATA_BYTES),
        ("grpc.max_concurrent_streams", config.max_streams),
        ("grpc.server_handshake_timeout_ms", 5000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """The event loop of uvloop where that is installed; none for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop


def _write_atomically(path: Path, text: str) -> None:
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            file.write(text + "\n")
        Path(file.name).replace(path)
    except OSError as error:
        raise ConfigError(f"port file {path} cannot be written: {error.strerror}") from None
