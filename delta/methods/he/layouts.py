"""How layers run on slots: where each value lies, which constants it is multiplied with, what is rotated.

A ciphertext holds `slots` values and knows three operations: slot by slot products and sums with another one or
with constants, and rotations. Three kinds of layers are made of these.

- `Convolution`: the record comes as its patches, value k of window w at slot k·P + w (im2col), P the windows
  rounded up to a power of two, repeated over all slots. A product with the kernel and log₂ K rotations sum over
  k; the result has period P. One ciphertext a channel.
- `BlockLinear`: inputs of period P. Output o gets block o of P slots: one product a channel, and log₂ P rotations
  for all outputs at once, which lie at slots o·P then.
- `ScatteredLinear`: inputs at slots j·s, whatever lies between. One product an output, each moved by its own
  offset (Horner's way: one rotation an output), then log₂ d rotations that sum over j.

Every layer and every square takes one level. Slots that hold no value of use hold sums of others, which the next
layer's zero weights drop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = [
    "BlockLinear",
    "Constant",
    "Constants",
    "Convolution",
    "Layer",
    "Linear",
    "Operations",
    "ScatteredLinear",
    "Value",
    "power_of_two",
]

Value = Any
"""A ciphertext, of whatever library."""
Constant = Any
"""Slot values `[slots]`, prepared for one level; none stands for zeros."""


class Operations(Protocol):
    """What a circuit asks of whoever computes."""

    def times(self, x: Value, constant: Constant) -> Value:
        """Slot by slot, not yet rescaled."""

    def add(self, x: Value, y: Value) -> Value:
        """Slot by slot."""

    def add_constant(self, x: Value, constant: Constant) -> Value:
        """Slot by slot."""

    def rotated(self, x: Value, step: int) -> Value:
        """Slot i gets what slot i + step held, around the end."""

    def rescaled(self, x: Value) -> Value:
        """Back to the scale before a product, one level down."""

    def squared(self, x: Value) -> Value:
        """Slot by slot, rescaled."""


@dataclass(frozen=True)
class Constants:
    """Slot values of one layer.

    Attributes:
        weights: for each result (a ciphertext), `[slots]` float64 for each product; none for zeros.
        biases: `[slots]` float64 for each result.
    """

    weights: list[list[Tensor | None]]
    biases: list[Tensor]


@dataclass(frozen=True)
class Convolution:
    """See the module."""

    slots: int
    channels: int
    values: int
    period: int

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Channels, and values of a patch."""
        return (self.channels, self.values)

    @property
    def sums(self) -> list[int]:
        """Rotations that sum."""
        return [self.period * step for step in _halves(power_of_two(self.values))]

    @property
    def rotations(self) -> set[int]:
        """All of them."""
        return set(self.sums)

    def constants(self, weight: Tensor, bias: Tensor) -> Constants:
        """Of kernels `[channels, values]`."""
        rows = power_of_two(self.values)
        padded = torch.nn.functional.pad(weight, (0, rows - self.values)).repeat_interleave(self.period, 1)
        tiled = padded.repeat(1, self.slots // padded.shape[1])
        return Constants([[_or_none(row)] for row in tiled], [b.expand(self.slots) for b in bias])

    def run(
        self, xs: Sequence[Value], weights: Sequence[Sequence[Constant]], ops: Operations
    ) -> Iterator[Value]:
        """One ciphertext → one a channel."""
        for (weight,) in weights:
            yield _summed(ops.rescaled(ops.times(xs[0], weight)), self.sums, ops)


@dataclass(frozen=True)
class BlockLinear:
    """See the module."""

    slots: int
    inputs: int
    valid: int
    period: int
    outputs: int

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Outputs, and values of all inputs."""
        return (self.outputs, self.inputs * self.valid)

    @property
    def together(self) -> int:
        """Outputs in one ciphertext."""
        return min(self.outputs, self.slots // self.period)

    @property
    def stride(self) -> int:
        """Between two outputs."""
        return self.period

    @property
    def sums(self) -> list[int]:
        """Rotations that sum."""
        return _halves(self.period)

    @property
    def rotations(self) -> set[int]:
        """All of them."""
        return set(self.sums)

    def constants(self, weight: Tensor, bias: Tensor) -> Constants:
        """Of a matrix `[outputs, inputs·valid]`."""
        weights: list[list[Tensor | None]] = []
        for rows in torch.split(weight, self.together):
            blocks = rows.new_zeros(self.inputs, self.slots // self.period, self.period)
            blocks[:, : len(rows), : self.valid] = rows.view(len(rows), self.inputs, self.valid).transpose(
                0, 1
            )
            weights.append([_or_none(values.flatten()) for values in blocks])
        return Constants(weights, _spread(bias, self))

    def run(
        self, xs: Sequence[Value], weights: Sequence[Sequence[Constant]], ops: Operations
    ) -> Iterator[Value]:
        """One ciphertext a channel → one for as many outputs as fit."""
        for group in weights:
            total: Value = None
            for x, weight in zip(xs, group, strict=True):
                if weight is not None:
                    part = ops.times(x, weight)
                    total = part if total is None else ops.add(total, part)
            yield _summed(ops.rescaled(total), self.sums, ops)


@dataclass(frozen=True)
class ScatteredLinear:
    """See the module."""

    slots: int
    inputs: int
    step: int
    outputs: int

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return (self.outputs, self.inputs)

    @property
    def stride(self) -> int:
        """Between two outputs: 1 where all fit between two inputs, else a whole span of inputs."""
        return 1 if self.outputs <= self.step else self.step * power_of_two(self.inputs)

    @property
    def together(self) -> int:
        """Outputs in one ciphertext."""
        return min(self.outputs, self.step if self.stride == 1 else self.slots // self.stride)

    @property
    def sums(self) -> list[int]:
        """Rotations that sum."""
        return [self.step * step for step in _halves(power_of_two(self.inputs))]

    @property
    def rotations(self) -> set[int]:
        """All of them."""
        return {*self.sums, *([-self.stride] if self.together > 1 else [])}

    def constants(self, weight: Tensor, bias: Tensor) -> Constants:
        """Of a matrix `[outputs, inputs]`."""
        placed = weight.new_zeros(self.outputs, self.slots)
        placed[:, torch.arange(self.inputs) * self.step] = weight
        groups = torch.split(placed, self.together)
        return Constants([[_or_none(row) for row in group] for group in groups], _spread(bias, self))

    def run(
        self, xs: Sequence[Value], weights: Sequence[Sequence[Constant]], ops: Operations
    ) -> Iterator[Value]:
        """One ciphertext → one for as many outputs as fit."""
        for group in weights:
            total: Value = None
            for weight in reversed(group):
                if total is not None:
                    total = ops.rotated(total, -self.stride)
                if weight is not None:
                    part = ops.times(xs[0], weight)
                    total = part if total is None else ops.add(total, part)
            yield _summed(ops.rescaled(total), self.sums, ops)


Linear = BlockLinear | ScatteredLinear
Layer = Convolution | Linear


def power_of_two(count: int) -> int:
    """The smallest that is not below a count."""
    return 1 << (count - 1).bit_length()


def _halves(span: int) -> list[int]:
    """1, 2, 4, … below a power of two."""
    return [1 << i for i in range(span.bit_length() - 1)]


def _summed(x: Value, steps: Sequence[int], ops: Operations) -> Value:
    for step in steps:
        x = ops.add(x, ops.rotated(x, step))
    return x


def _spread(bias: Tensor, layer: Linear) -> list[Tensor]:
    found = []
    for values in torch.split(bias, layer.together):
        placed = bias.new_zeros(layer.slots)
        placed[torch.arange(len(values)) * layer.stride] = values
        found.append(placed)
    return found


def _or_none(values: Tensor) -> Tensor | None:
    return values if bool(values.any()) else None
