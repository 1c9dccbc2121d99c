"""Keyed noise: uniform integers that are a function of who, what and how, and of a secret key.

The same release gives the same integers after a restart, a rollback or in another process, so that asking
again averages nothing away; another record id, content, release configuration, mechanism or subject gives
independent ones. The guarantee is computational and lasts as long as the key is secret.

    noise key ─HMAC─▶ subject key ─HMAC─▶ release key ─AES-256-CTR─▶ 64-bit integers, little-endian
        ├─────HMAC─▶ release id, under a domain of its own
        ├─────HMAC─▶ place in an upload, likewise
        └─ the subject key ─HMAC─▶ layout key of a release, likewise ─AES-256-CTR─▶ 64-bit integers
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

from delta.release.ids import ReleaseId, ReleaseIdentity, length_prefixed
from delta.secret_file import SecretFile

__all__ = ["NoiseKey"]

_SUBJECT, _RELEASE, _NAME = "delta/subject/v1", "delta/release/v1", "delta/release-id/v1"
_ORDER, _LAYOUT = "delta/upload-order/v1", "delta/release-layout/v1"


class NoiseKey(SecretFile):
    """The owner's secret: 32 random bytes, outside the bundle."""

    __slots__ = ()

    kind = "noise key"
    needed_by = "releases stored under it need it"

    @classmethod
    def beside(cls, bundle: Path) -> NoiseKey:
        """The key `noise.key` beside a bundle's folder, drawn on first use; it never lies inside the bundle.

        Raises:
            ConfigError: it cannot be written or read, or others may read it.
        """
        return cls.at(bundle.absolute().parent / "noise.key")

    def uniforms(self, identity: ReleaseIdentity, count: int) -> Tensor:
        """The release's uniform integers.

        Returns:
            `[count]` uint64; the first ones do not depend on `count`.
        """
        return self.batch_uniforms([identity], count)[0]

    def batch_uniforms(self, identities: Sequence[ReleaseIdentity], count: int) -> Tensor:
        """The uniform integers of several releases, `[n, count]` uint64."""
        return self._streams(_RELEASE, identities, count)

    def batch_layouts(self, identities: Sequence[ReleaseIdentity], count: int) -> Tensor:
        """The uniform integers that order the patches of several releases, `[n, count]` uint64.

        They are independent of those that draw the bits.
        """
        return self._streams(_LAYOUT, identities, count)

    def _streams(self, domain: str, identities: Sequence[ReleaseIdentity], count: int) -> Tensor:
        drawn = np.empty((len(identities), count), dtype=np.uint64)
        nothing = bytes(8 * count)
        subject_keys: dict[str, bytes] = {}
        for row, identity in zip(drawn, identities, strict=True):
            if identity.subject not in subject_keys:
                subject_keys[identity.subject] = _mac(self._secret, _SUBJECT, identity.subject)
            key = _mac(subject_keys[identity.subject], domain, *_what(identity))
            # The key serves one release and one domain, so the counter may always start at zero.
            stream = Cipher(AES(key), CTR(bytes(16))).encryptor().update(nothing)
            row[:] = np.frombuffer(stream, dtype="<u8")
        return torch.from_numpy(drawn)

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
