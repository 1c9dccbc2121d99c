"""A secret of 32 random bytes in a file that nobody else may read."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import ClassVar, Self

from delta.errors import ConfigError
from delta.files import sync_folder

__all__ = ["SecretFile"]

_SIZE = 32


class SecretFile:
    """The base of every such secret.

    Args:
        secret: 32 bytes.

    Raises:
        ConfigError: another size.
    """

    __slots__ = ("_secret",)

    kind: ClassVar[str]
    """How messages name it."""
    needed_by: ClassVar[str]
    """What is lost without it."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _SIZE:
            raise ConfigError(
                f"a {self.kind} has {_SIZE} bytes, got {len(secret)}; make one with {type(self).__name__}.generate"
            )
        self._secret = bytes(secret)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(secret)"

    @classmethod
    def generate(cls) -> Self:
        """A new one from the system's generator."""
        return cls(secrets.token_bytes(_SIZE))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            ConfigError: absent, no plain file, of another size, or open to the group or to others.
        """
        name = f"{cls.kind} {path}"
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ConfigError(f"{name} is not a plain file; give the path of the file itself")
                if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                    raise ConfigError(
                        f"{name} is open to others (mode {status.st_mode & 0o777:03o}); "
                        "run chmod 600 on it, or make a new one if somebody may have read it"
                    )
                secret = file.read(_SIZE + 1)
        except OSError as error:
            raise ConfigError(f"{name} cannot be read: {error.strerror}") from None
        if len(secret) != _SIZE:
            raise ConfigError(f"{name} is not {_SIZE} bytes long; restore it from where it was saved")
        return cls(secret)

    def save(self, path: Path) -> None:
        """Write a new file with mode 0600, synced; an existing file is never touched.

        Raises:
            ConfigError: the file exists or cannot be written; nothing is left behind.
        """
        name = f"{self.kind} {path}"
        staging: Path | None = None
        try:
            handle, text = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
            staging = Path(text)
            with open(handle, "wb") as file:
                file.write(self._secret)
                file.flush()
                os.fsync(file.fileno())
            os.link(staging, path)  # there whole, or not at all; never over another
            sync_folder(path.parent)
        except FileExistsError:
            raise ConfigError(f"{name} exists; {self.needed_by}, so choose another path") from None
        except OSError as error:
            raise ConfigError(f"{name} cannot be written: {error.strerror}") from None
        finally:
            if staging is not None:
                staging.unlink(missing_ok=True)

    @classmethod
    def at(cls, path: Path) -> Self:
        """The secret at a path, drawn on first use.

        Raises:
            ConfigError: it cannot be written or read, or others may read it.
        """
        if not path.exists():
            try:
                cls.generate().save(path)
            except ConfigError:
                if not path.exists():  # otherwise another process was first: its secret serves both
                    raise
        return cls.load(path)
