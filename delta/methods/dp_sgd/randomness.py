"""The secret numbers of a DP-SGD training: its noise, and which records a batch holds.

PyTorch's generator for the CPU has 32 bits of seed: whoever holds the trained model and all records but one
could try them all. So the numbers come from AES-256 in counter mode under a key of the system's.
"""

from __future__ import annotations

import hashlib
import secrets

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

from delta.release.ids import length_prefixed

__all__ = ["SecretNumbers"]


class SecretNumbers:
    """A stream of uniform integers.

    Args:
        seed: none draws a key that nobody learns; a seed makes the stream repeatable, for tests.
        start: names the stream of a seed, so that a training that goes on does not meet its numbers again.
    """

    def __init__(self, seed: int | None = None, *, start: str = "") -> None:
        key = (
            secrets.token_bytes(32)
            if seed is None
            else hashlib.sha256(length_prefixed("delta/dp-sgd/v1", str(seed), start)).digest()
        )
        self._stream = Cipher(AES(key), CTR(bytes(16))).encryptor()

    def integers(self, count: int) -> Tensor:
        """The next `count` uniform integers, `[count]` uint64."""
        data = self._stream.update(bytes(8 * count))
        return torch.from_numpy(np.frombuffer(data, dtype="<u8").astype(np.uint64))

    def poisson(self, records: int, *, rate: float) -> Tensor:
        """A Poisson sample: the positions of the records that are drawn, each with probability `rate`, int64."""
        threshold = rate * 2.0**64
        drawn = self.integers(records).numpy()
        chosen = drawn < np.uint64(threshold) if threshold < 2.0**64 else np.ones(records, dtype=bool)
        return torch.from_numpy(np.flatnonzero(chosen))
