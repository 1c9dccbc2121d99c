"""Keyed noise: uniform integers that are a function of who, what and how, and of a secret key.

The same release gives the same integers after a restart, a rollback or in another process, so that asking
again averages nothing away; another record id, content, release configuration, mechanism or subject gives
independent ones. The guarantee is computational and lasts as long as the key is secret.

    noise key ─HMAC─▶ subject key ─HMAC─▶ release key ─AES-256-CTR─▶ 64-bit integers, little-endian
        ├─────HMAC─▶ release id, under a domain of its own
        └─────HMAC─▶ place in an upload, likewise
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

from delta.errors import ConfigError
from delta.release.ids import ReleaseId, ReleaseIdentity, length_prefixed

__all__ = ["NoiseKey"]

_SIZE = 32
_SUBJECT, _RELEASE, _NAME = "delta/subject/v1", "delta/release/v1", "delta/release-id/v1"
_ORDER = "delta/upload-order/v1"


class NoiseKey:
    """The owner's secret: 32 random bytes, outside the bundle.

    Args:
        secret: 32 bytes.

    Raises:
        ConfigError: another size.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _SIZE:
            raise ConfigError(
                f"a noise key has {_SIZE} bytes, got {len(secret)}; make one with NoiseKey.generate"
            )
        self._secret = bytes(secret)

    def __repr__(self) -> str:
        return "NoiseKey(secret)"

    @classmethod
    def generate(cls) -> NoiseKey:
        """A new key from the system's generator."""
        return cls(secrets.token_bytes(_SIZE))

    @classmethod
    def load(cls, path: Path) -> NoiseKey:
        """Read a key file.

        Raises:
            ConfigError: absent, no plain file, of another size, or open to the group or to others.
        """
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ConfigError(f"noise key {path} is not a plain file; give the path of a key file")
                if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                    raise ConfigError(
                        f"noise key {path} is open to others (mode {status.st_mode & 0o777:03o}); "
                        "run chmod 600 on it, or make a new one if somebody may have read it"
                    )
                secret = file.read(_SIZE + 1)
        except OSError as error:
            raise ConfigError(f"noise key {path} cannot be read: {error.strerror}") from None
        if len(secret) != _SIZE:
            raise ConfigError(
                f"noise key {path} is not {_SIZE} bytes long; restore it from where it was saved"
            )
        return cls(secret)

    def save(self, path: Path) -> None:
        """Write a new key file with mode 0600; an existing file is never touched.

        Raises:
            ConfigError: the file exists or cannot be written; nothing is left behind.
        """
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise ConfigError(
                f"noise key {path} exists; releases stored under it need it, so choose another path"
            ) from None
        except OSError as error:
            raise ConfigError(f"noise key {path} cannot be written: {error.strerror}") from None
        try:
            with open(descriptor, "wb") as file:
                file.write(self._secret)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            path.unlink(missing_ok=True)
            raise ConfigError(f"noise key {path} cannot be written: {error.strerror}") from None

    @classmethod
    def beside(cls, bundle: Path) -> NoiseKey:
        """The key `noise.key` beside a bundle's folder, drawn on first use; it never lies inside the bundle.

        Raises:
            ConfigError: it cannot be written or read, or others may read it.
        """
        path = bundle.absolute().parent / "noise.key"
        if not path.exists():
            try:
                cls.generate().save(path)
            except ConfigError:
                if not path.exists():  # otherwise another process was first: its key serves both
                    raise
        return cls.load(path)

    def uniforms(self, identity: ReleaseIdentity, count: int) -> Tensor:
        """The release's uniform integers.

        Returns:
            `[count]` uint64; the first ones do not depend on `count`.
        """
        subject_key = _mac(self._secret, _SUBJECT, identity.subject)
        key = _mac(subject_key, _RELEASE, *_what(identity))
        # The key serves one release, so the counter may always start at zero.
        stream = Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(8 * count))
        return torch.from_numpy(np.frombuffer(stream, dtype="<u8").astype(np.uint64))

    def release_id(self, identity: ReleaseIdentity) -> ReleaseId:
        """The opaque name under which memo and ledger know the release."""
        return ReleaseId(_mac(self._secret, _NAME, identity.subject, *_what(identity)).hex())

    def order(self, names: Sequence[str]) -> list[int]:
        """A keyed permutation: the positions of `names` in the order of upload.

        It depends on the key and on the set of names, not on the order in which they are given: neither a data
        set's order nor what a name looks like can carry a class to the cloud.
        """
        return sorted(range(len(names)), key=lambda i: _mac(self._secret, _ORDER, names[i]))


def _what(identity: ReleaseIdentity) -> tuple[str | bytes, ...]:
    return identity.record, identity.digest, identity.release_hash, identity.mechanism


def _mac(key: bytes, *fields: str | bytes) -> bytes:
    return hmac.digest(key, length_prefixed(*fields), hashlib.sha256)
