"""A spec's layers one after the other, with a square between any two: what runs on encrypted slots."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from delta.errors import ModelError
from delta.methods.he.layouts import (
    BlockLinear,
    Constant,
    Convolution,
    Layer,
    Linear,
    Operations,
    ScatteredLinear,
    Value,
    power_of_two,
)
from delta.methods.he.spec import Patches, Spec

__all__ = ["Circuit", "needed_slots"]


class Circuit:
    """The layers of a spec on the slots of its ring.

    Args:
        spec: of the bundle.
        shape: of a record.

    Raises:
        ModelError: a layer does not fit the ring's slots, or the record.
    """

    def __init__(self, spec: Spec, shape: Sequence[int]) -> None:
        self._patches = spec.patches
        self.slots = spec.ring.slots
        self.layers = _layers(spec.patches, spec.widths, shape, slots=self.slots)
        self.depth = 2 * len(self.layers) - 1
        if spec.mode == "network" and spec.patches is None and math.prod(shape) != spec.widths[0]:
            raise ModelError(
                f"a record has {math.prod(shape)} values, and the first layer takes {spec.widths[0]}"
            )
        needed = needed_slots(spec.patches, spec.widths, shape)
        if needed > self.slots:
            raise ModelError(f"the layers need {needed} slots, and the ring has {self.slots}")

    @property
    def rotations(self) -> list[int]:
        """Every rotation that some layer makes."""
        return sorted(set[int]().union(*(layer.rotations for layer in self.layers)))

    @property
    def squares(self) -> bool:
        """Whether there is a square: it needs the relinearisation's key."""
        return len(self.layers) > 1

    @property
    def results(self) -> list[tuple[int, Tensor]]:
        """For each ciphertext of the result: how many logits it holds, and in which slots."""
        last = self._last
        counts = [min(last.together, last.outputs - at) for at in range(0, last.outputs, last.together)]
        return [(count, torch.arange(count) * last.stride) for count in counts]

    def encoded(self, x: Tensor) -> Tensor:
        """Records `[n, …]` as slot values `[n, slots]`, float64."""
        first = self.layers[0]
        x = x.double()
        if self._patches is not None and isinstance(first, Convolution):
            values = self._patches.of(x)
            rows = power_of_two(first.values)
            pads = (0, first.period - values.shape[2], 0, rows - first.values)
        else:
            values = x.flatten(1)[:, None]
            pads = (0, power_of_two(values.shape[2]) - values.shape[2], 0, 0)
        laid = torch.nn.functional.pad(values, pads).flatten(1)
        return laid.repeat(1, self.slots // laid.shape[1])

    def run(
        self,
        x: Value,
        constants: Sequence[tuple[Sequence[Sequence[Constant]], Sequence[Constant]]],
        ops: Operations,
    ) -> list[Value]:
        """The ciphertexts of the logits.

        Args:
            x: of `encoded` slots.
            constants: weights and biases of each layer, as `constants` of that layer has them.
            ops: who computes.
        """
        values = [x]
        for number, (layer, (weights, biases)) in enumerate(zip(self.layers, constants, strict=True)):
            if number:
                values = [ops.squared(value) for value in values]
            results = layer.run(values, weights, ops)
            values = [ops.add_constant(r, bias) for r, bias in zip(results, biases, strict=True)]
        return values

    @property
    def _last(self) -> Linear:
        last = self.layers[-1]
        if isinstance(last, Convolution):
            raise ModelError("a circuit ends with a linear layer")
        return last


def needed_slots(patches: Patches | None, widths: Sequence[int], shape: Sequence[int]) -> int:
    """Slots that the layers need at least.

    Raises:
        ModelError: the first layer does not fit the record.
    """
    most = 1
    layers = _layers(patches, widths, shape, slots=1 << 40)
    for layer in layers:
        if isinstance(layer, Convolution):
            most = max(most, power_of_two(layer.values) * layer.period)
        elif layer is layers[-1]:
            # What does not fit one ciphertext goes into further ones.
            span = layer.step * power_of_two(layer.inputs) if isinstance(layer, ScatteredLinear) else 1
            most = max(most, layer.stride, span)
        else:
            most = max(most, layer.stride * layer.outputs)
    return most


def _layers(
    patches: Patches | None, widths: Sequence[int], shape: Sequence[int], *, slots: int
) -> list[Layer]:
    layers: list[Layer] = []
    inputs, valid = 1, widths[0]
    if patches is not None:
        inputs, valid = patches.channels, patches.windows(shape[1:])
        if valid < 1 or inputs * valid != widths[0]:
            raise ModelError(
                f"the convolution makes {inputs} × {valid} values of a record, and the next layer takes "
                f"{widths[0]}"
            )
        layers.append(Convolution(slots, inputs, patches.values(shape[0]), power_of_two(valid)))
    linear: Linear = BlockLinear(slots, inputs, valid, power_of_two(valid), widths[1])
    layers.append(linear)
    for outputs in widths[2:]:
        linear = ScatteredLinear(slots, linear.outputs, linear.stride, outputs)
        layers.append(linear)
    return layers
