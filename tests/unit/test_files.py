"""Files that are there whole, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from delta.errors import InputError
from delta.files import write_whole


def test_the_cause_is_told_when_the_temporary_file_is_gone_too(tmp_path, monkeypatch):
    """Someone else may have swept it."""

    def swept(source: str, target: Path) -> None:
        os.unlink(source)
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(os, "replace", swept)
    with pytest.raises(InputError, match=r"out cannot be written: No such file or directory"):
        write_whole(tmp_path / "out", b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch):
    write_whole(tmp_path / "out", b"before")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write_whole(tmp_path / "out", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_bytes() == b"before"
