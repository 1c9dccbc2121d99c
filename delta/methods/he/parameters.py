"""The smallest ring that is 128-bit secure for a depth, a precision and a number of slots."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from delta.config import Strict
from delta.errors import ConfigError

__all__ = ["MAX_BITS", "Ring", "best_precision", "choose_ring", "key_bytes"]

MAX_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
"""Ring degree → most bits of modulus at 128-bit security with ternary secrets against classical attacks
(Albrecht et al. 2018, Homomorphic Encryption Security Standard, table 1; SEAL enforces the same numbers)."""

_LARGEST_PRIME = 60  # bits; SEAL's bound


class Ring(Strict):
    """Ring and modulus chain of CKKS.

    Attributes:
        degree: N; a ciphertext has N/2 slots.
        bits: of the primes: the one that decryption is left with, one for each level, and the key switch's.
        precision: bits of the scale.
    """

    degree: int
    bits: tuple[int, ...] = Field(min_length=3)
    precision: int = Field(ge=20, le=50)

    @model_validator(mode="after")
    def _secure(self) -> Self:
        if self.degree not in MAX_BITS:
            raise ValueError(f"degree must be one of {', '.join(map(str, MAX_BITS))}")
        if sum(self.bits) > MAX_BITS[self.degree]:
            raise ValueError(
                f"{sum(self.bits)} bits of modulus are not 128-bit secure in a ring of degree {self.degree}: at "
                f"most {MAX_BITS[self.degree]} are"
            )
        if not all(self.precision <= bits <= _LARGEST_PRIME for bits in self.bits):
            raise ValueError(f"every prime needs {self.precision} to {_LARGEST_PRIME} bits")
        return self

    @property
    def depth(self) -> int:
        """Multiplications that a ciphertext bears one after the other."""
        return len(self.bits) - 2

    @property
    def slots(self) -> int:
        """Values in one ciphertext."""
        return self.degree // 2


def choose_ring(*, depth: int, precision: int, slots: int = 1, integer_bits: int = 11) -> Ring:
    """The smallest secure ring.

    Args:
        depth: multiplications one after the other, at least 1.
        precision: bits of the scale: about so many bits, less a dozen of noise, lie behind the binary point.
        slots: values that one ciphertext must hold.
        integer_bits: of the result before the point, sign included.

    Raises:
        ConfigError: no ring is large enough; the text says what was asked and what to give up.
    """
    if depth < 1 or not 20 <= precision <= 50 or integer_bits < 1:
        raise ConfigError(
            f"encryption takes a depth of at least 1, a precision of 20 to 50 bits and integer bits of at least "
            f"1, got {depth}, {precision} and {integer_bits}"
        )
    if precision + integer_bits > _LARGEST_PRIME:
        raise ConfigError(
            f"precision and integer bits come to {precision + integer_bits}, at most {_LARGEST_PRIME} fit one "
            "prime; lower one of them"
        )
    ends = precision + integer_bits
    bits = (ends, *[precision] * depth, ends)
    total, (largest, most) = sum(bits), max(MAX_BITS.items())
    if total > most:
        raise ConfigError(
            f"depth {depth} at {precision} bits needs {total} bits of modulus, and the largest ring (degree "
            f"{largest}) is 128-bit secure up to {most}; use fewer activations and layers, or lower the precision"
        )
    if 2 * slots > largest:
        raise ConfigError(
            f"the layers need {slots} slots, and the largest ring has {largest // 2}; use a larger stride, a "
            "smaller kernel, or fewer features"
        )
    degree = next(n for n, limit in MAX_BITS.items() if total <= limit and 2 * slots <= n)
    return Ring(degree=degree, bits=bits, precision=precision)


def best_precision(
    *, depth: int, slots: int, integer_bits: int = 11, at_least: int, at_most: int = 40
) -> int:
    """The highest precision that costs no larger ring than `at_least` does; arguments as of `choose_ring`.

    Raises:
        ConfigError: not even `at_least` fits.
    """
    ring = choose_ring(depth=depth, precision=at_least, slots=slots, integer_bits=integer_bits)
    fits = (MAX_BITS[ring.degree] - 2 * integer_bits) // (depth + 2)
    return max(at_least, min(fits, at_most, _LARGEST_PRIME - integer_bits))


def key_bytes(ring: Ring) -> int:
    """About what one key (of a rotation, or the relinearisation's) weighs when sent, bytes; at most that."""
    return (len(ring.bits) - 1) * ring.degree * sum(bits + 8 for bits in ring.bits) // 8 + 4096
