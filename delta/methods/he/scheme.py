"""CKKS (Cheon, Kim, Kim & Song 2017) as TenSEAL brings it: contexts, keys and ciphertexts as bytes and back."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from delta.errors import ConfigError, MethodError
from delta.methods.he.envelope import unpacked_bound
from delta.methods.he.parameters import Ring

__all__ = ["Evaluator", "Scheme", "bytes_of", "from_bytes", "library"]

_SLACK = 4
"""Zstandard may cut its blocks short: what a stream may unpack to is known up to a factor."""


def library() -> Any:  # noqa: ANN401
    """TenSEAL's binding of SEAL, imported when it is needed.

    Raises:
        MethodError: TenSEAL is not installed.
    """
    try:
        return importlib.import_module("tenseal.sealapi")
    except ImportError:
        raise MethodError("method 'he' needs the package 'tenseal'; install delta-split[baselines]") from None


class Scheme:
    """The public parameters: what both sides know before any key.

    Args:
        ring: checked for 128-bit security here, and again by SEAL.

    Raises:
        MethodError: TenSEAL is not installed.
        ConfigError: there are no such primes, or SEAL refuses the parameters.
    """

    def __init__(self, ring: Ring) -> None:
        seal = library()
        self.seal = seal
        self.ring = ring
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(ring.degree)
        try:
            parameters.set_coeff_modulus(seal.CoeffModulus.Create(ring.degree, list(ring.bits)))
        except (ValueError, RuntimeError):
            raise ConfigError(
                f"there are too few primes of {min(ring.bits)} bits for a ring of degree {ring.degree}; raise the "
                "precision"
            ) from None
        self.context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise ConfigError(f"SEAL refuses the ring: {self.context.parameters_error_message()}")
        self.encoder = seal.CKKSEncoder(self.context)
        self.evaluator = seal.Evaluator(self.context)
        self._parms: list[Any] = []
        primes: list[float] = []
        data = self.context.first_context_data()
        while data is not None:
            self._parms.append(data.parms_id())
            primes.append(float(data.parms().coeff_modulus()[-1].value()))
            data = data.next_context_data()
        self.primes = primes
        """That a ciphertext of each level loses when it is rescaled."""
        self.scales = self._scales()
        """Scale of a layer's input and result by level: 2^precision, and what the squares have made of it."""

    def parms_id(self, level: int) -> Any:  # noqa: ANN401
        """SEAL's name for a level; 0 is a fresh ciphertext's."""
        return self._parms[level]

    def encoded(self, values: Tensor, *, level: int, scale: float) -> Any:  # noqa: ANN401
        """Slot values `[slots]` as a plaintext; none where they are zeros at that scale.

        Raises:
            ValueError: they are too large for the level.
        """
        plain = self.seal.Plaintext()
        self.encoder.encode(values.tolist(), self._parms[level], scale, plain)
        return None if plain.is_zero() else plain

    def element(self, step: int) -> int:
        """The Galois element of a rotation by `step` slots to the left."""
        return pow(3, step % self.ring.slots, 2 * self.ring.degree)

    def _scales(self) -> list[float]:
        scale = 2.0**self.ring.precision
        scales = [scale]
        for level, prime in enumerate(self.primes[:-1]):
            if level % 2:  # levels of squares alternate with those of layers, which keep the scale
                scale = scale * scale / prime
            scales.append(scale)
        return scales

    def ciphertext(self, data: bytes, *, level: int, scale: float) -> Any:  # noqa: ANN401
        """An untrusted ciphertext, checked to be a usual one of that level and scale.

        Raises:
            ValueError: it is not.
        """
        size = 16 * (len(self._parms) - level) * self.ring.degree
        found = from_bytes(self.seal.Ciphertext(), self.context, data, size=size)
        if (
            found.parms_id() != self._parms[level]
            or found.size() != 2
            or not found.is_ntt_form()
            or not abs(found.scale / scale - 1) < 1e-9
        ):
            raise ValueError("no ciphertext of that level and scale")
        return found


class Evaluator:
    """Computes on ciphertexts with the keys of one session; see `layouts.Operations`.

    Args:
        scheme: whose ciphertexts.
        relin: the relinearisation's keys; none where nothing is squared.
        rotations: Galois keys by rotation step.
    """

    def __init__(self, scheme: Scheme, *, relin: Any, rotations: Mapping[int, Any]) -> None:  # noqa: ANN401
        self._scheme = scheme
        self._ops = scheme.evaluator
        self._relin = relin
        self._rotations = rotations

    def times(self, x: Any, constant: Any) -> Any:  # noqa: ANN401
        """Slot by slot, not rescaled."""
        result = self._scheme.seal.Ciphertext()
        self._ops.multiply_plain(x, constant, result)
        return result

    def add(self, x: Any, y: Any) -> Any:  # noqa: ANN401
        """Slot by slot."""
        result = self._scheme.seal.Ciphertext()
        self._ops.add(x, y, result)
        return result

    def add_constant(self, x: Any, constant: Any) -> Any:  # noqa: ANN401
        """Slot by slot, in place; none is zeros."""
        if constant is not None:
            self._ops.add_plain_inplace(x, constant)
        return x

    def rotated(self, x: Any, step: int) -> Any:  # noqa: ANN401
        """To the left by `step` slots."""
        result = self._scheme.seal.Ciphertext()
        self._ops.apply_galois(x, self._scheme.element(step), self._rotations[step], result)
        return result

    def rescaled(self, x: Any) -> Any:  # noqa: ANN401
        """One level down, in place."""
        self._ops.rescale_to_next_inplace(x)
        return x

    def squared(self, x: Any) -> Any:  # noqa: ANN401
        """One level down, in place."""
        self._ops.square_inplace(x)
        self._ops.relinearize_inplace(x, self._relin)
        self._ops.rescale_to_next_inplace(x)
        return x


def bytes_of(thing: Any) -> bytes:  # noqa: ANN401
    """A SEAL object, serialised. Never a secret key: nothing of this method asks for that."""
    with _file() as (descriptor, path):
        thing.save(path)
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def from_bytes(empty: Any, context: Any, data: bytes, *, size: int) -> Any:  # noqa: ANN401
    """An untrusted SEAL object, checked against the context.

    Args:
        empty: of its type; returned.
        context: SEAL's.
        data: as `bytes_of` makes them.
        size: bytes of its content, unpacked.

    Raises:
        ValueError: it is none, or too large, or does not fit the context.
    """
    if unpacked_bound(data) > _SLACK * size + (1 << 20):
        raise ValueError("it would unpack to more than it may hold")
    with _file() as (descriptor, path):
        os.pwrite(descriptor, data, 0)
        try:
            empty.load(context, path)
        except (RuntimeError, ValueError, IndexError, MemoryError, OverflowError):
            raise ValueError("SEAL does not read it") from None
    return empty


@contextmanager
def _file() -> Iterator[tuple[int, str]]:
    """A file for SEAL's binding, which reads and writes nothing else: in memory where the system has such."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        descriptor = os.memfd_create("delta-he")
        try:
            yield descriptor, f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.NamedTemporaryFile(prefix="delta-he-") as file:
        yield file.fileno(), file.name


def bytes_tensor(data: bytes) -> Tensor:
    """Bytes as `uint8[n]`."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def tensor_bytes(tensor: Tensor) -> bytes:
    """`uint8[n]` as bytes."""
    return tensor.contiguous().numpy().tobytes()


def values_of(scheme: Scheme, plain: Any, slots: Sequence[int]) -> Tensor:  # noqa: ANN401
    """Some slots of a decrypted plaintext, float64."""
    return torch.tensor(scheme.encoder.decode_double(plain), dtype=torch.float64)[list(slots)]
