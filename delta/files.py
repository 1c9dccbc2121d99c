"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from delta.errors import InputError

__all__ = ["sync_folder", "write_whole"]


def write_whole(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a temporary file beside the target, sync it and rename it into place; absent folders are made.

    Once this returns, the file survives a crash of the machine.

    Args:
        path: of the file; an earlier one is replaced.
        data: its content.
        mode: its permissions.

    Raises:
        InputError: it cannot be written; nothing is left behind.
    """
    staging: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, staging = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(staging, mode)
        os.replace(staging, path)
        staging = None
        sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        if staging is not None:
            with suppress(OSError):  # swept by someone else, or the disk is gone: the first error is told
                os.unlink(staging)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as what they name."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
