"""Settings of a server."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from delta.config import Strict
from delta.errors import ConfigError

__all__ = ["ServerConfig", "parse_listen"]


class ServerConfig(Strict):
    """What a server hosts, where it listens and what it bears.

    Attributes:
        bundles: folders whose cloud parts are served.
        host: address to listen on.
        port: to listen on; 0 lets the system choose.
        device: where cloud models compute: `cpu`, `cuda` or `cuda:N`.
        threads: of torch on the CPU; none for torch's own choice.
        max_batch: most records in one call of a batchable operation.
        max_delay_ms: how long a busy batcher may hold a request back to fill its batch; an idle one never
            waits.
        queue_records: most records admitted and not yet answered, over all clients.
        max_deadline_s: longest deadline that a unary call may ask for; longer ones of streams are cut to it.
        handshake_s: how long an open stream may stay silent before its Hello.
        max_streams: most streams open at a time over all clients.
        stream_requests: most requests of one stream not yet answered; further ones are not read.
        exchange_message_bytes: largest message of `Exchange`.
        grace_s: how long a draining server waits for streams to finish.
        allow: import targets outside `delta.models` that a manifest may name.
        plugins: modules to import that register methods.
        port_file: where to write HOST:PORT once listening.
        stop_on_stdin: drain when standard input closes, so that a launcher's death ends the server.
    """

    bundles: tuple[Path, ...] = Field(min_length=1)
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int | None = Field(default=None, ge=1)
    max_batch: int = Field(default=64, ge=1)
    max_delay_ms: float = Field(default=0.0, ge=0, le=10_000)
    queue_records: int = Field(default=8192, ge=1)
    max_deadline_s: float = Field(default=60.0, gt=0, le=86_400)
    handshake_s: float = Field(default=10.0, gt=0)
    max_streams: int = Field(default=256, ge=1)
    stream_requests: int = Field(default=1024, ge=1)
    exchange_message_bytes: int = Field(default=64 * 2**20, ge=1024, le=2**31 - 1)
    grace_s: float = Field(default=20.0, ge=0)
    allow: frozenset[str] = frozenset()
    plugins: tuple[str, ...] = ()
    port_file: Path | None = None
    stop_on_stdin: bool = False


def parse_listen(text: str) -> tuple[str, int]:
    """Split `HOST:PORT` or `[HOST]:PORT`.

    Raises:
        ConfigError: it is neither.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(
            f"{text!r} is no address; give HOST:PORT such as 127.0.0.1:50051 (port 0: any free one)"
        )
    return host, int(port)
