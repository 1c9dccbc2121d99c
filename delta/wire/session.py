"""Opening a session: protocol version, and what both sides are bound to."""

from __future__ import annotations

from delta.errors import CloudMismatchError
from delta.transport.base import Binding
from delta.v1.session_pb2 import Binding as BindingMessage
from delta.v1.session_pb2 import Hello, Welcome

__all__ = [
    "PROTOCOL_VERSION",
    "BindingMessage",
    "Hello",
    "Welcome",
    "check_binding",
    "check_version",
    "decode_binding",
    "encode_binding",
    "hello_message",
]

PROTOCOL_VERSION = 1


def encode_binding(binding: Binding) -> BindingMessage:
    """A binding as a message."""
    return BindingMessage(
        model=binding.model,
        cloud_hash=binding.cloud_hash,
        release_hash=binding.release_hash,
        mechanism=binding.mechanism,
    )


def decode_binding(message: BindingMessage) -> Binding:
    """A message as a binding."""
    return Binding(message.model, message.cloud_hash, message.release_hash, message.mechanism)


def hello_message(binding: Binding, *, payload_bytes: int, deadline_ms: int) -> Hello:
    """The first message of a stream."""
    return Hello(
        protocol_version=PROTOCOL_VERSION,
        binding=encode_binding(binding),
        payload_bytes=payload_bytes,
        deadline_ms=deadline_ms,
    )


def check_version(version: int, *, peer: str) -> None:
    """Refuse a peer of another protocol version.

    Raises:
        CloudMismatchError: naming both versions.
    """
    if version != PROTOCOL_VERSION:
        raise CloudMismatchError(
            f"protocol version differs: the {peer} speaks {version}, this side {PROTOCOL_VERSION}; "
            "install the same release of Delta on both"
        )


def check_binding(asked: Binding, served: Binding) -> None:
    """Compare what a client asks for with what a model is.

    Raises:
        CloudMismatchError: naming the first entry that differs.
    """
    for name, wanted, found in (
        ("cloud_hash", asked.cloud_hash, served.cloud_hash),
        ("release_hash", asked.release_hash, served.release_hash),
        ("mechanism", asked.mechanism, served.mechanism),
    ):
        if wanted != found:
            raise CloudMismatchError(
                f"{name} differs: the client has {_short(wanted)}, model {served.model!r} has "
                f"{_short(found)}; use the bundle that the cloud part was exported from"
            )


def _short(value: str) -> str:
    if not value:
        return "none"
    return value if len(value) <= 24 else f"{value[:12]}…"
