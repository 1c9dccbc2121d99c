"""A tenant's token: what makes a data set in the cloud this client's own."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from delta.errors import ConfigError
from delta.wire.training import TOKEN_BYTES

__all__ = ["TenantToken"]


class TenantToken:
    """32 random bytes, made by the client; the cloud keeps their hash alone.

    Args:
        secret: 32 bytes.

    Raises:
        ConfigError: another size.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != TOKEN_BYTES:
            raise ConfigError(
                f"a tenant token has {TOKEN_BYTES} bytes, got {len(secret)}; make one with TenantToken.generate"
            )
        self._secret = bytes(secret)

    def __repr__(self) -> str:
        return "TenantToken(secret)"

    @property
    def secret(self) -> bytes:
        """The bytes, for the calls to the cloud."""
        return self._secret

    @classmethod
    def generate(cls) -> TenantToken:
        """A new token from the system's generator."""
        return cls(secrets.token_bytes(TOKEN_BYTES))

    @classmethod
    def load(cls, path: Path) -> TenantToken:
        """Read a token file.

        Raises:
            ConfigError: absent, no plain file, of another size, or open to the group or to others.
        """
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ConfigError(
                        f"tenant token {path} is not a plain file; give the path of a token file"
                    )
                if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                    raise ConfigError(
                        f"tenant token {path} is open to others (mode {status.st_mode & 0o777:03o}); "
                        "run chmod 600 on it, or make a new one if somebody may have read it"
                    )
                secret = file.read(TOKEN_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"tenant token {path} cannot be read: {error.strerror}") from None
        if len(secret) != TOKEN_BYTES:
            raise ConfigError(
                f"tenant token {path} is not {TOKEN_BYTES} bytes long; restore it from where it was saved"
            )
        return cls(secret)

    def save(self, path: Path) -> None:
        """Write a new token file with mode 0600; an existing file is never touched.

        Raises:
            ConfigError: the file exists or cannot be written; nothing is left behind.
        """
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise ConfigError(
                f"tenant token {path} exists; data sets in the cloud need it, so choose another path"
            ) from None
        except OSError as error:
            raise ConfigError(f"tenant token {path} cannot be written: {error.strerror}") from None
        try:
            with open(descriptor, "wb") as file:
                file.write(self._secret)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            path.unlink(missing_ok=True)
            raise ConfigError(f"tenant token {path} cannot be written: {error.strerror}") from None

    @classmethod
    def at(cls, path: Path) -> TenantToken:
        """The token at a path, drawn on first use.

        Raises:
            ConfigError: it cannot be written or read, or others may read it.
        """
        if not path.exists():
            try:
                cls.generate().save(path)
            except ConfigError:
                if not path.exists():  # otherwise another process was first: its token serves both
                    raise
        return cls.load(path)
