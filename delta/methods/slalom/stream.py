"""Secret uniform field elements: AES-256 in counter mode under a key of its own."""

from __future__ import annotations

import os
import secrets

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

from delta.methods.slalom.field import PRIME

__all__ = ["SecretStream"]


class SecretStream:
    """A key stream whose key is drawn from the system's generator, lives in memory and goes nowhere.

    Uniform up to what AES is: of each 32-bit word as many low bits as p has are kept, and what is p or more is
    drawn again, so there is no bias. After a fork the child goes on under a key of its own.
    """

    def __init__(self) -> None:
        self._draw_key()

    def _draw_key(self) -> None:
        self._process = os.getpid()
        self._encryptor = Cipher(AES(secrets.token_bytes(32)), CTR(bytes(16))).encryptor()

    def __repr__(self) -> str:
        return "SecretStream()"

    def elements(self, count: int, *, prime: int = PRIME) -> Tensor:
        """Uniform elements of [0, p) that the stream gives no second time.

        Returns:
            `[count]` int32.
        """
        if self._process != os.getpid():
            self._draw_key()
        drawn = self._words(count, prime)
        while len(again := np.flatnonzero(drawn >= prime)):
            drawn[again] = self._words(len(again), prime)
        return torch.from_numpy(drawn)

    def _words(self, count: int, prime: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        words = np.frombuffer(self._encryptor.update(bytes(4 * count)), dtype="<u4")
        mask = np.uint32((1 << (prime - 1).bit_length()) - 1)
        return (words & mask).astype(np.int32)
