"""The services of a server: method paths, deadlines, and errors as gRPC statuses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

import delta
from delta.errors import CloudOverloadedError, CloudUnavailableError
from delta.wire.services import (
    CATALOG_SERVICE,
    EXCHANGE_SERVICE,
    INFERENCE_SERVICE,
    TRAINING_SERVICE,
    GetManifestRequest,
    GetManifestResponse,
    ListModelsRequest,
    ListModelsResponse,
    ServerInfo,
)
from delta.wire.session import PROTOCOL_VERSION
from delta_server.answers import AnswerRoom
from delta_server.batcher import Batcher
from delta_server.config import ServerConfig
from delta_server.exchange import ExchangeSession
from delta_server.guard import Context, deadline_of, guarded
from delta_server.models import ModelStore
from delta_server.predict import PredictSession, predict
from delta_server.stream import StreamSession, parse
from delta_server.training.service import TrainingService

__all__ = ["Services"]


class Services:
    """What the server answers, over raw messages: parsing is ours, and so is each refusal's text.

    Args:
        config: settings.
        models: the hosted models.
        batcher: which runs their operations.
        training: answers `TrainingService`.

    Attributes:
        sessions: the open streams.
    """

    def __init__(
        self, config: ServerConfig, models: ModelStore, batcher: Batcher, training: TrainingService
    ) -> None:
        self._config = config
        self._models = models
        self._batcher = batcher
        self._training = training
        self._room = AnswerRoom(config.unread_bytes)
        self.sessions: set[StreamSession] = set()
        self._draining = False

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """One handler a service."""
        unary = grpc.unary_unary_rpc_method_handler
        stream = grpc.stream_stream_rpc_method_handler
        services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {
            CATALOG_SERVICE: {
                "ListModels": unary(self._unary(self._list_models)),
                "GetManifest": unary(self._unary(self._get_manifest)),
            },
            INFERENCE_SERVICE: {
                "Predict": unary(self._unary(self._predict)),
                "PredictStream": stream(self._stream(PredictSession)),
            },
            EXCHANGE_SERVICE: {"Exchange": stream(self._stream(ExchangeSession))},
            TRAINING_SERVICE: self._training.handlers(),
        }
        return tuple(
            grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items()
        )

    def drain(self) -> None:
        """Open no more sessions, and ask those that are open to end."""
        self._draining = True
        self._training.drain()
        for session in self.sessions:
            session.drain()

    def _unary(
        self, call: Callable[[bytes, float], Awaitable[bytes]]
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handler(raw: bytes, context: Context) -> bytes:
            async def run() -> bytes:
                return await call(raw, deadline_of(context, longest_s=self._config.max_deadline_s))

            return await guarded(context, run)

        return handler

    def _stream(self, kind: type[StreamSession]) -> Callable[[Any, Context], Awaitable[None]]:
        async def handler(_: object, context: Context) -> None:
            async def run() -> None:
                if self._draining:
                    raise CloudUnavailableError("the server is stopping; connect again later")
                if len(self.sessions) >= self._config.max_streams:
                    raise CloudOverloadedError(
                        f"{self._config.max_streams} streams are open already; connect again later"
                    )
                session = kind(context, self._models, self._batcher, self._config, self._room)
                self.sessions.add(session)
                try:
                    await session.run()
                finally:
                    self.sessions.discard(session)

            await guarded(context, run)

        return handler

    async def _predict(self, raw: bytes, deadline_s: float) -> bytes:
        return await predict(raw, models=self._models, batcher=self._batcher, deadline_s=deadline_s)

    async def _list_models(self, raw: bytes, _: float) -> bytes:
        parse(ListModelsRequest, raw)
        server = ServerInfo(
            protocol_version=PROTOCOL_VERSION,
            version=delta.__version__,
            tee="none",
            device=self._config.device,
            max_deadline_ms=round(self._config.max_deadline_s * 1e3),
            queue_records=self._config.queue_records,
        )
        models = [model.info() for model in self._models.models.values()]
        return ListModelsResponse(server=server, models=models).SerializeToString()

    async def _get_manifest(self, raw: bytes, _: float) -> bytes:
        request: GetManifestRequest = parse(GetManifestRequest, raw)
        manifest = self._models.get(request.model).manifest
        return GetManifestResponse(manifest=manifest.model_dump_json().encode()).SerializeToString()
