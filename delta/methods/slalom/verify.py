"""Freivalds' check of the cloud's products, with the records of a batch folded into one.

For a layer y = W·x over the field of p elements, records n and output channels o, the private side draws secret
uniform factors ρ_n for this answer and s_o for this layer, and compares, at every place of the output,

    Σ_o s_o Σ_n ρ_n y[n, o]   with   (sᵀW)·(Σ_n ρ_n x[n]),

a convolution with one output channel of one record. Let E ≠ 0 be the error of an answer at a place where it has
one, `[n, o]`. It passes if ρᵀE s = 0, which needs E s = 0 or, that vector being another one, ρ orthogonal to it:
at most 1/p + 1/p, for whatever answer a cloud gives that knows neither. It learns nothing of s from honest
answers, and after a wrong one s is drawn anew, so the bound holds for every answer by itself. k independent
repetitions miss with probability at most (2/p)ᵏ.

R. Freivalds, "Probabilistic machines can use less running time", IFIP Congress 1977.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delta.errors import CloudAnswerError
from delta.methods.slalom.field import LIMB, PRIME, limbs, product, reduce_, weighted_sum
from delta.methods.slalom.quantise import QuantLayer
from delta.methods.slalom.spec import LayerSpec
from delta.methods.slalom.stream import SecretStream

__all__ = ["Challenge", "Verifier", "miss_bound", "verification_macs"]


def miss_bound(*, repetitions: int, prime: int = PRIME) -> float:
    """The most likely that a wrong answer passes."""
    return (2 / prime) ** repetitions


def verification_macs(spec: LayerSpec, *, repetitions: int, records: int = 1) -> int:
    """MACs of checking one layer's answer for a batch, a record.

    Both sums over the records, the one-channel convolution of their sum in two limbs, and the sum over the output
    channels, likewise.
    """
    sums = spec.inputs + spec.outputs
    folded = 2 * spec.inputs * spec.taps + 2 * spec.outputs
    return repetitions * (sums + -(-folded // records))


@dataclass(frozen=True, repr=False)
class Challenge:
    """What a right answer must satisfy; secret until the answer is there.

    Attributes:
        factors: ρ, elements in float64, `[repetitions, n]`.
        expected: elements in float64, `[repetitions, places]`.
    """

    factors: Tensor
    expected: Tensor


class Verifier:
    """Checks one layer's answers.

    After a fork the child draws secrets of its own.

    Args:
        layer: whose they are.
        stream: of the secret factors.
        repetitions: k.
        prime: p.
    """

    def __init__(
        self, layer: QuantLayer, stream: SecretStream, *, repetitions: int, prime: int = PRIME
    ) -> None:
        self._layer, self._spec = layer, layer.spec
        self._stream, self._repetitions, self._prime = stream, repetitions, prime
        self.draw()

    def draw(self) -> None:
        """Draw s, and fold the weights with it."""
        self._process = os.getpid()
        spec, groups = self._spec, self._spec.groups
        s = self._elements(spec.channels_out)
        weight = self._layer.integers.reshape(groups, -1, spec.fan_in)
        largest = max(1, int(weight.abs().max())) * (self._prime - 1)
        by_group = s.view(self._repetitions, groups, -1).transpose(0, 1)
        folded = product(by_group, weight, largest=largest, prime=self._prime)  # [groups, k, fan_in]
        by_tap = (
            folded.transpose(0, 1).reshape(self._repetitions, spec.channels_in, spec.taps).transpose(1, 2)
        )
        self._weights = limbs(by_tap, dim=1)  # [k, 2·taps, channels_in]
        self._sums = limbs(s[:, None], dim=1)  # [k, 2, channels_out]

    def challenge(self, sent: Tensor) -> Challenge:
        """What the answer to a request must satisfy.

        Args:
            sent: what was sent, int32 `[n, inputs]` in [0, p).
        """
        if self._process != os.getpid():
            self.draw()
        spec = self._spec
        factors = self._elements(len(sent))
        record = spec.places_last(weighted_sum(factors, sent, self._prime), spec.input_shape)
        return Challenge(factors, self._gathered(self._dot(self._weights, record)))

    def check(self, challenge: Challenge, answer: Tensor) -> None:
        """Accept an answer, or not.

        Args:
            challenge: of its request; good for one answer.
            answer: int32 `[n, outputs]`.

        Raises:
            CloudAnswerError: a value is no element of the field, or the products are wrong.
        """
        name = self._spec.name
        least, most = torch.aminmax(answer)
        if int(least) < 0 or int(most) >= self._prime:
            raise CloudAnswerError(f"layer {name!r}: the cloud's answer is not in the field")
        total = weighted_sum(challenge.factors, answer, self._prime)
        by_place = self._spec.places_last(total, self._spec.output_shape)
        if not torch.equal(self._dot(self._sums, by_place)[:, 0], challenge.expected):
            self.draw()
            raise CloudAnswerError(f"layer {name!r}: the cloud's products are wrong")

    def _elements(self, count: int) -> Tensor:
        drawn = self._stream.elements(self._repetitions * count, prime=self._prime)
        return drawn.view(self._repetitions, count).to(torch.float64)

    def _dot(self, factors: Tensor, values: Tensor) -> Tensor:
        """Factors in limbs `[k, 2·rows, channels]` times elements `[k, channels, places]`, mod p."""
        largest = (LIMB - 1) * (self._prime - 1)
        high, low = product(factors, values, largest=largest, prime=self._prime).chunk(2, dim=1)
        return reduce_(high * LIMB + low, self._prime)

    def _gathered(self, by_tap: Tensor) -> Tensor:
        """Products of every tap at every place of the input → the convolution: each tap's, shifted, added up.

        Unfolding the products, one channel a tap, costs far less than unfolding all input channels.

        Args:
            by_tap: `[k, taps, places]`.

        Returns:
            `[k, output places]`.
        """
        spec = self._spec
        if spec.kind == "linear":
            return by_tap[:, 0]
        maps = nn.functional.pad(by_tap.reshape(*by_tap.shape[:2], *spec.input_shape[1:]), spec.padding)
        height, width = spec.output_shape[1:]
        (step_h, step_w), (dilation_h, dilation_w) = spec.stride, spec.dilation
        total = maps.new_zeros(self._repetitions, height, width)
        for tap in range(spec.taps):
            row, column = divmod(tap, spec.kernel[1])
            top, left = row * dilation_h, column * dilation_w
            total += maps[
                :,
                tap,
                top : top + step_h * (height - 1) + 1 : step_h,
                left : left + step_w * (width - 1) + 1 : step_w,
            ]
        return reduce_(total.flatten(1), self._prime)
