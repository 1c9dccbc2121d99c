"""The private side's keys: the secret one stays in this object, and in this process."""

from __future__ import annotations

import secrets
from typing import Any, NoReturn

import torch
from torch import Tensor

from delta.errors import InputError
from delta.methods.he.circuit import Circuit
from delta.methods.he.scheme import Scheme, bytes_of, bytes_tensor, tensor_bytes, values_of

__all__ = ["RELIN", "Keys", "new_session"]

RELIN = 0
"""Number that stands for the relinearisation's key where a Galois element would stand."""


def new_session() -> Tensor:
    """An id that nobody can guess, `uint8[16]`."""
    return bytes_tensor(secrets.token_bytes(16))


class Keys:
    """One secret key, what follows from it, and the two things that are done with it.

    Args:
        scheme: public parameters.
        circuit: whose rotations need keys.
    """

    def __init__(self, scheme: Scheme, circuit: Circuit) -> None:
        seal = scheme.seal
        self._scheme = scheme
        generator = seal.KeyGenerator(scheme.context)
        secret = generator.secret_key()
        self._encryptor = seal.Encryptor(scheme.context, secret)
        self._decryptor = seal.Decryptor(scheme.context, secret)
        # Seeded: half of each key is a seed while it travels.
        self._public = [
            (element, bytes_of(generator.create_galois_keys([element])))
            for element in (scheme.element(step) for step in circuit.rotations)
        ]
        if circuit.squares:
            self._public.append((RELIN, bytes_of(generator.create_relin_keys())))

    def __repr__(self) -> str:
        return "Keys(secret)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys of method 'he' are not serialised: the secret one stays in this process")

    @property
    def public(self) -> list[dict[str, Tensor]]:
        """What the cloud computes with, message by message: `element int64[1]` and `key uint8[m]`."""
        return [
            {"element": torch.tensor([element]), "key": bytes_tensor(data)} for element, data in self._public
        ]

    def encrypted(self, values: Tensor) -> Tensor:
        """The one place where private values become what leaves (I2): `[slots]` float64 → `uint8[m]`.

        Raises:
            InputError: the values are too large for the modulus.
        """
        try:
            plain = self._scheme.seal.Plaintext()
            scheme = self._scheme
            scheme.encoder.encode(values.tolist(), scheme.parms_id(0), scheme.scales[0], plain)
        except (ValueError, RuntimeError):
            raise InputError("a record holds values that are too large to encrypt; scale the data") from None
        return bytes_tensor(bytes_of(self._encryptor.encrypt_symmetric(plain)))

    def decrypted(self, data: Tensor, slots: Tensor) -> Tensor:
        """An untrusted answer `uint8[m]` → its values in some slots, float64.

        Raises:
            ValueError: it is no ciphertext that the circuit could have ended with.
        """
        scheme = self._scheme
        level = scheme.ring.depth
        found = scheme.ciphertext(tensor_bytes(data), level=level, scale=scheme.scales[level])
        plain: Any = scheme.seal.Plaintext()
        try:
            self._decryptor.decrypt(found, plain)
        except (ValueError, RuntimeError):
            raise ValueError("it does not decrypt") from None
        return values_of(scheme, plain, slots.tolist())
