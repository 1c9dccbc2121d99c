"""`python -m delta_server`: the server as a process."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from delta.errors import DeltaError, spec_of
from delta_server.app import run
from delta_server.config import ServerConfig, parse_listen
from delta_server.log import log_to_stderr

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; returns the exit status."""
    log_to_stderr()
    try:
        run(_config(_parser().parse_args(arguments)))
    except DeltaError as error:
        sys.stderr.write(f"error: {error}\n")
        return spec_of(error).exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="delta_server", description="Serve the cloud part of bundles, and train."
    )
    add = parser.add_argument
    add(
        "--bundle",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="may be given several times, or not at all with --training",
    )
    add("--training", type=Path, metavar="DIR", help="train for clients; data sets and jobs are kept there")
    add("--train-workers", type=int, metavar="N", help="processes of one training job")
    add(
        "--train-sessions",
        type=int,
        metavar="N",
        help="interactive trainings open at a time; half for a tenant",
    )
    add("--train-job-s", type=float, metavar="S", help="longest that a training job may take, seconds")
    add("--train-memory", type=int, metavar="BYTES", help="memory of a training process on the CPU")
    add("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0: any free one")
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--threads", type=int, metavar="N", help="threads of torch")
    add("--max-batch", type=int, metavar="RECORDS", help="most records in one call")
    add("--max-delay-ms", type=float, metavar="MS", help="how long a busy batcher may wait to fill a batch")
    add("--queue", type=int, metavar="RECORDS", help="most records admitted and not yet answered")
    add(
        "--allow",
        action="append",
        default=[],
        metavar="TARGET",
        help="import target that a manifest may name",
    )
    add("--plugin", action="append", default=[], metavar="MODULE", help="module that registers methods")
    add("--port-file", type=Path, metavar="PATH", help="write HOST:PORT there once listening")
    add("--stop-on-stdin", action="store_true", help="drain when standard input closes")
    return parser


def _config(options: argparse.Namespace) -> ServerConfig:
    host, port = parse_listen(options.listen)
    settings = {
        "bundles": tuple(options.bundle),
        "training": options.training,
        "train_workers": options.train_workers,
        "train_sessions": options.train_sessions,
        "train_job_s": options.train_job_s,
        "train_memory": options.train_memory,
        "host": host,
        "port": port,
        "device": options.device,
        "threads": options.threads,
        "max_batch": options.max_batch,
        "max_delay_ms": options.max_delay_ms,
        "queue_records": options.queue,
        "allow": frozenset(options.allow),
        "plugins": tuple(options.plugin),
        "port_file": options.port_file,
        "stop_on_stdin": options.stop_on_stdin,
    }
    given = {key: value for key, value in settings.items() if value is not None}
    return ServerConfig.parse(given, what="server")


if __name__ == "__main__":
    sys.exit(main())
