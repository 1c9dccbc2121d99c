"""`delta serve`: the cloud as a process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from delta.cli.output import write_json

__all__ = ["serve"]


def serve(
    bundle: Annotated[
        list[Path] | None, typer.Option(help="Folder of a bundle or of its cloud part; repeatable.")
    ] = None,
    training: Annotated[
        Path | None, typer.Option(help="Train for clients too; data sets and jobs are kept in this folder.")
    ] = None,
    train_workers: Annotated[
        int | None, typer.Option(help="Processes of one training job; default 1.")
    ] = None,
    train_job_s: Annotated[
        float | None, typer.Option(help="Longest that one training job may take, seconds; default a day.")
    ] = None,
    train_memory: Annotated[
        int | None, typer.Option(help="Bytes that a training process on the CPU may map; default: no limit.")
    ] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0: any free one.")] = "127.0.0.1:50051",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    max_batch: Annotated[
        int | None, typer.Option(help="Records that one model call may join; default 64.")
    ] = None,
    max_delay_ms: Annotated[
        float | None, typer.Option(help="Longest wait for more records while busy; default 0.")
    ] = None,
    queue: Annotated[
        int | None, typer.Option(help="Records that may wait; beyond it RESOURCE_EXHAUSTED; default 8192.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the model; default: all cores.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="pkg.mod:callable that a bundle may build; repeatable.")
    ] = None,
    plugin: Annotated[
        list[str] | None, typer.Option(help="Module that registers methods; repeatable.")
    ] = None,
    port_file: Annotated[Path | None, typer.Option(help="Write HOST:PORT here once listening.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write address and models here once listening.")] = None,
) -> None:
    """Serve the cloud part of bundles over gRPC, and train. The private half of a bundle is never read."""
    from delta_server.app import run
    from delta_server.config import ServerConfig, parse_listen
    from delta_server.log import log_to_stderr

    log_to_stderr()
    host, port = parse_listen(listen)
    limits = {
        "max_batch": max_batch,
        "max_delay_ms": max_delay_ms,
        "queue_records": queue,
        "train_workers": train_workers,
        "train_job_s": train_job_s,
        "train_memory": train_memory,
    }
    config = ServerConfig.parse(
        {
            "bundles": tuple(bundle or ()),
            "training": training,
            "host": host,
            "port": port,
            "device": device,
            "threads": threads,
            "allow": frozenset(allow or ()),
            "plugins": tuple(plugin or ()),
            "port_file": port_file,
            **{name: value for name, value in limits.items() if value is not None},
        },
        what="delta serve",
    )

    def tell(address: str, models: list[str]) -> None:
        write_json(json, {"address": address, "models": models, "device": device, "tee": "none"})

    run(config, listening=tell)
