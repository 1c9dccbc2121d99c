"""Structured log lines: one JSON object a line on standard error, with scalars only (I6)."""

from __future__ import annotations

import json
import logging
import os
import sys
import time

__all__ = ["event", "log_to_stderr"]

_LOGGER = logging.getLogger("delta_server")


def event(name: str, /, **fields: str | int | float | bool | None) -> None:
    """Log one event; fields are names, counts and times, never contents of a request or an exception."""
    if _LOGGER.isEnabledFor(logging.INFO):
        line = {"time": round(time.time(), 3), "event": name, "tee": "none", **fields}
        _LOGGER.info(json.dumps(line, ensure_ascii=True))


def log_to_stderr() -> None:
    """Send the server's log to standard error, and keep gRPC's own tracebacks out of it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False
    logging.getLogger("grpc").setLevel(logging.CRITICAL)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
