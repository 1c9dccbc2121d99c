"""`delta serve`: the cloud as a process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["serve"]


def serve(
    bundle: Annotated[list[Path], typer.Option(help="Folder of a bundle or of its cloud part; repeatable.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0: any free one.")] = "127.0.0.1:50051",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    max_batch: Annotated[int, typer.Option(help="Records that one model call may join.")] = 256,
    max_delay_ms: Annotated[float, typer.Option(help="Longest wait for more records while busy.")] = 2.0,
    queue: Annotated[int, typer.Option(help="Records that may wait; beyond it RESOURCE_EXHAUSTED.")] = 4096,
    threads: Annotated[int | None, typer.Option(help="Threads of the model; default: all cores.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="pkg.mod:callable that a bundle may build; repeatable.")
    ] = None,
    plugin: Annotated[
        list[str] | None, typer.Option(help="Module that registers methods; repeatable.")
    ] = None,
    port_file: Annotated[Path | None, typer.Option(help="Write HOST:PORT here once listening.")] = None,
) -> None:
    """Serve the cloud part of bundles over gRPC. The private half of a bundle is never read."""
    from delta_server.app import run
    from delta_server.config import ServerConfig, parse_listen
    from delta_server.log import log_to_stderr

    log_to_stderr()
    host, port = parse_listen(listen)
    run(
        ServerConfig.parse(
            {
                "bundles": tuple(bundle),
                "host": host,
                "port": port,
                "device": device,
                "max_batch": max_batch,
                "max_delay_ms": max_delay_ms,
                "queue_records": queue,
                "threads": threads,
                "allow": frozenset(allow or ()),
                "plugins": tuple(plugin or ()),
                "port_file": port_file,
            },
            what="delta serve",
        )
    )
