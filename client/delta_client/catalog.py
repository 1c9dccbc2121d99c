"""What a cloud offers: its models, and their manifests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc
from pydantic import ValidationError

from delta.bundle.manifest import Manifest
from delta.config import explain
from delta.errors import CloudAnswerError, CloudUnavailableError
from delta.transport.base import Binding
from delta.wire.services import CatalogServiceStub, GetManifestRequest, ListModelsRequest
from delta.wire.session import check_version, decode_binding
from delta.wire.status import error_from_status

__all__ = ["CatalogEntry", "fetch_manifest", "list_models"]

T = TypeVar("T")


@dataclass(frozen=True)
class CatalogEntry:
    """One model that a cloud offers, as the cloud says.

    Attributes:
        binding: what a session with it is bound to.
        method: its method.
        operations: names of its operations.
        payload_bytes: packed bytes a record; 0 where it does not serve `Predict`.
        classes: logits a record; 0 likewise.
    """

    binding: Binding
    method: str
    operations: tuple[str, ...]
    payload_bytes: int
    classes: int


def list_models(
    address: str, *, timeout_s: float = 5.0, credentials: grpc.ChannelCredentials | None = None
) -> list[CatalogEntry]:
    """The models that a cloud offers.

    Raises:
        CloudUnavailableError: nobody answers there.
        CloudMismatchError: the cloud is of another version.
    """
    response = _call(
        address, credentials, lambda stub: stub.ListModels(ListModelsRequest(), timeout=timeout_s)
    )
    check_version(response.server.protocol_version, peer="cloud")
    return [
        CatalogEntry(
            binding=decode_binding(model.binding),
            method=model.method,
            operations=tuple(operation.name for operation in model.operations),
            payload_bytes=model.payload_bytes,
            classes=model.classes,
        )
        for model in response.models
    ]


def fetch_manifest(
    address: str,
    model: str = "",
    *,
    timeout_s: float = 5.0,
    credentials: grpc.ChannelCredentials | None = None,
) -> Manifest:
    """The manifest of a model, its hashes checked; an empty name stands for the only one.

    Raises:
        CloudUnavailableError: nobody answers there.
        CloudMismatchError: no such model.
        CloudAnswerError: what came is no manifest.
    """
    response = _call(
        address,
        credentials,
        lambda stub: stub.GetManifest(GetManifestRequest(model=model), timeout=timeout_s),
    )
    try:
        return Manifest.model_validate_json(response.manifest)
    except ValidationError as error:
        raise CloudAnswerError(f"the cloud's manifest is not valid: {explain(error)}") from None


def _call(
    address: str, credentials: grpc.ChannelCredentials | None, call: Callable[[CatalogServiceStub], T]
) -> T:
    channel = (
        grpc.insecure_channel(address) if credentials is None else grpc.secure_channel(address, credentials)
    )
    with channel:
        try:
            return call(CatalogServiceStub(channel))
        except grpc.RpcError as error:
            reason = error_from_status(error)
    if type(reason) is CloudUnavailableError:
        raise CloudUnavailableError(
            f"no cloud answers at {address}; start one with `delta serve`, or check the address"
        )
    raise reason
