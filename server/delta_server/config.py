"""Settings of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from delta.config import Strict
from delta.errors import ConfigError

__all__ = ["ServerConfig", "parse_listen"]


class ServerConfig(Strict):
    """What a server hosts, where it listens and what it bears.

    Attributes:
        bundles: folders whose cloud parts are served; at least one, unless the server trains.
        training: folder of stored data sets, jobs and promoted models; none: the server does not train.
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
        unread_bytes: most bytes of answers that all streams together hold, promised to a request or not read yet;
            requests beyond it are refused. At least `exchange_message_bytes`.
        unread_s: how long a client may leave a message of answers unread before its stream is ended; not below
            what the largest answer takes on the slowest link served.
        exchange_message_bytes: largest message of `Exchange`, either way.
        grace_s: how long a draining server waits for streams to finish.
        train_jobs: one-shot jobs that train at a time; further ones wait, and tenants take turns.
        train_workers: processes of one job, on this machine.
        train_sessions: interactive trainings that may be open at a time.
        train_job_s: longest that a one-shot job may train from its turn on; it is failed then, and may be started
            again.
        train_idle_s: how long an upload or an interactive training may stay silent.
        train_memory: most bytes of memory that a training process may map, on the CPU; none: no limit.
        tenants: most tenants that may have data sets or promoted models.
        tenant_bytes: most bytes that the data sets of one tenant may come to, what their jobs have left, and
            promoted models; no job begins, and no model is promoted, beyond it.
        tenant_models: most promoted models of one tenant.
        tenant_streams: most training streams of one tenant at a time, and of all who have no data set together;
            none: a quarter of `max_streams`, at least 2.
        promoted_models: most promoted models of all tenants.
        dataset_jobs: most jobs of one data set.
        allow: import targets outside `delta.models` that a manifest or a job may name.
        plugins: modules to import that register methods.
        port_file: where to write HOST:PORT once listening.
        stop_on_stdin: drain when standard input closes, so that a launcher's death ends the server.
    """

    bundles: tuple[Path, ...] = ()
    training: Path | None = None
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
    unread_bytes: int = Field(default=512 * 2**20, ge=1024)
    unread_s: float = Field(default=60.0, gt=0)
    exchange_message_bytes: int = Field(default=64 * 2**20, ge=1024, le=2**31 - 1)
    grace_s: float = Field(default=20.0, ge=0)
    train_jobs: int = Field(default=1, ge=1)
    train_workers: int = Field(default=1, ge=1, le=64)
    train_sessions: int = Field(default=8, ge=1)
    train_job_s: float = Field(default=86_400.0, gt=0)
    train_idle_s: float = Field(default=600.0, gt=0)
    train_memory: int | None = Field(default=None, ge=2**30)
    tenants: int = Field(default=64, ge=1)
    tenant_bytes: int = Field(default=8 * 2**30, ge=1)
    tenant_models: int = Field(default=16, ge=1)
    tenant_streams: int | None = Field(default=None, ge=1)
    promoted_models: int = Field(default=64, ge=1)
    dataset_jobs: int = Field(default=64, ge=1)
    allow: frozenset[str] = frozenset()
    plugins: tuple[str, ...] = ()
    port_file: Path | None = None
    stop_on_stdin: bool = False

    @property
    def streams_each(self) -> int:
        """Most training streams of one tenant at a time."""
        return self.tenant_streams or max(2, self.max_streams // 4)

    @property
    def sessions_each(self) -> int:
        """Most interactive trainings of one tenant at a time: half of all."""
        return max(1, self.train_sessions // 2)

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.bundles and self.training is None:
            raise ValueError(
                "no bundle to serve, and no folder to train in; give --bundle DIR or --training DIR"
            )
        return self

    @model_validator(mode="after")
    def _one_answer_fits(self) -> Self:
        if self.unread_bytes < self.exchange_message_bytes:
            raise ValueError(
                f"unread_bytes ({self.unread_bytes}) is below exchange_message_bytes "
                f"({self.exchange_message_bytes}), so that the largest answer never fits; raise the one or lower "
                "the other"
            )
        return self


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
