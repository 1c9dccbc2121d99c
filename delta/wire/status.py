"""Errors on the wire: a gRPC status with a `delta-error` code, or a `Failure` of one request in a stream."""

from __future__ import annotations

import grpc

from delta.errors import (
    CloudError,
    DeltaError,
    InternalError,
    RequestError,
    UnknownMethodError,
    error_from_wire,
    spec_of,
)
from delta.v1.session_pb2 import Failure

__all__ = [
    "ERROR_KEY",
    "Failure",
    "as_transport_error",
    "encode_failure",
    "error_from_failure",
    "error_from_status",
    "one_line",
    "public_text",
    "status_of",
]

ERROR_KEY = "delta-error"
"""Trailing metadata that names the error."""
_MAX_TEXT = 300


def public_text(error: DeltaError) -> str:
    """What a peer may read of an error."""
    spec = spec_of(error)
    return str(error) if spec.detail_is_public else spec.public_message


def status_of(error: DeltaError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Status code, public text and trailing metadata of an error."""
    spec = spec_of(error)
    return grpc.StatusCode[spec.grpc_status], public_text(error), ((ERROR_KEY, spec.code),)


def encode_failure(error: DeltaError) -> Failure:
    """An error as the answer to one request."""
    return Failure(code=spec_of(error).code, message=public_text(error))


def error_from_failure(failure: Failure) -> CloudError | RequestError:
    """The error that one request's `Failure` stands for."""
    return as_transport_error(
        error_from_wire(code=failure.code, grpc_status="", message=one_line(failure.message))
    )


def error_from_status(error: grpc.RpcError | grpc.aio.AioRpcError) -> CloudError | RequestError:
    """The error that a failed call stands for."""
    if not isinstance(error, (grpc.aio.AioRpcError, grpc.Call)):
        return CloudError("the call failed without a status")
    code = None
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KEY:
            code = value if isinstance(value, str) else value.decode("ascii", "replace")
    text = one_line(error.details() or "the call failed without a reason")
    return as_transport_error(error_from_wire(code=code, grpc_status=error.code().name, message=text))


def as_transport_error(error: BaseException) -> CloudError | RequestError:
    """What a transport may raise: an untrusted peer chooses among the cloud's own errors only."""
    if isinstance(error, (CloudError, RequestError)):
        return error
    if isinstance(error, UnknownMethodError):
        return RequestError(str(error))
    if isinstance(error, DeltaError):
        return CloudError(public_text(error))
    return CloudError(spec_of(InternalError).public_message)


def one_line(text: str) -> str:
    """A peer's text, made fit to print: one line, bounded, no control characters."""
    return "".join(char if char.isprintable() else " " for char in text[:_MAX_TEXT]).strip()
