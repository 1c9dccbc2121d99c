"""One run at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from delta.errors import CheckpointError

__all__ = ["LOCK", "InUseError", "folder_lock"]

LOCK = "lock"
"""Name of the file that is locked; it stays, since to delete it would let two in."""


class InUseError(CheckpointError):
    """Another run holds the folder."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep others out of a folder, which is made if need be; the lock ends with this process at the latest.

    Raises:
        InUseError: another run holds it.
        CheckpointError: it cannot be locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(folder, error) from None
    owner = os.getpid()
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(
                f"{folder} is in use by another run; wait for it, or choose another folder"
            ) from None
        except OSError as error:
            raise _unusable(folder, error) from None
        try:
            yield
        finally:
            if os.getpid() == owner:  # a forked child has the same lock, and would take it from us
                fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def _unusable(folder: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{folder} cannot be used: {error.strerror}; choose another folder")
