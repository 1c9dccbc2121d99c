"""The Transport contract: how the private side reaches the operations of a cloud half."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from torch import Tensor

__all__ = ["Answer", "Binding", "Transport"]


@dataclass(frozen=True)
class Binding:
    """What a session fixes once for all its messages; either side refuses another one.

    Attributes:
        model: name under which the cloud serves the model; empty for its only one.
        cloud_hash: hash of the cloud part's weights and architecture.
        release_hash: hash of the release configuration; empty for methods without one.
        mechanism: identifier of the release mechanism; empty for methods without one.
    """

    model: str = ""
    cloud_hash: str = ""
    release_hash: str = ""
    mechanism: str = ""


@dataclass(frozen=True)
class Answer:
    """What the cloud answered, and what it cost.

    Attributes:
        tensors: the operation's outputs by name, checked against its schema, nothing more (I4: untrusted).
        cloud_ms: the request's share, by records, of the time that the cloud says it computed for the batch in
            which it rode, milliseconds.
        bytes_up: serialised request messages, bytes.
        bytes_down: serialised answer messages, bytes.
    """

    tensors: dict[str, Tensor]
    cloud_ms: float
    bytes_up: int
    bytes_down: int


class Transport(Protocol):
    """One session with one cloud half.

    Contract (tests/contract/test_transports.py runs it over every implementation):
    answers come back to the request they belong to, in whatever order the cloud finishes them; every failure
    is a `delta.errors.CloudError` or `RequestError` set on the future, never raised by `submit` itself; a
    cancelled or late request leaves the session usable; `close` fails what is pending and is idempotent.
    """

    @property
    def handshake_bytes(self) -> tuple[int, int]:
        """Serialised bytes (up, down) of opening the session; (0, 0) before it is open."""
        ...

    def submit(self, op: str, tensors: Mapping[str, Tensor], *, deadline_s: float) -> Future[Answer]:
        """Send one request and return at once.

        Args:
            op: name of an operation of the cloud half.
            tensors: its inputs by name.
            deadline_s: seconds from now until the future fails with `CloudDeadlineError`.
        """
        ...

    def close(self) -> None:
        """End the session; pending futures fail with `CloudUnavailableError`."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
