"""Fixed point, a layer at a time: integers so small that no sum of products leaves the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from delta.errors import ModelError
from delta.methods.layers import LinearLayer
from delta.methods.slalom.field import PRIME, half_of
from delta.methods.slalom.spec import LayerSpec
from delta.models.modes import evaluating

__all__ = ["LEAST_BITS", "InputRange", "QuantLayer", "input_ranges", "quantised"]

LEAST_BITS = 4
"""A layer whose weights or inputs would keep fewer, sign included, is refused."""
_BATCH = 64


@dataclass(frozen=True)
class InputRange:
    """What calibration records show of one layer's input: its largest magnitude, and its mean square."""

    largest: float
    mean_square: float


@dataclass(frozen=True)
class QuantLayer:
    """A layer in fixed point: y = scale·(W·q(x)) + bias, with integers W and q(x) = clip(round(x·inverse)).

    Attributes:
        spec: shapes.
        weight: int16, of `spec.weight_shape`.
        clip: X: q(x) lies in [−X, X], whatever the input.
        inverse: 1 / the input's step.
        scale: float32 `[channels_out]`: the input's step times the weights'.
        bias: float32 `[channels_out]`, added privately.
    """

    spec: LayerSpec
    weight: Tensor
    clip: int
    inverse: float
    scale: Tensor
    bias: Tensor

    def check(self, prime: int = PRIME) -> QuantLayer:
        """This layer, no accumulator of which exceeds p/2, whatever the input.

        Raises:
            ModelError: one could, or the tensors do not fit the shapes; the text names the layer.
        """
        spec = self.spec
        shapes = (tuple(self.weight.shape), tuple(self.scale.shape), tuple(self.bias.shape))
        if shapes != (spec.weight_shape, (spec.channels_out,), (spec.channels_out,)):
            raise ModelError(f"layer {spec.name!r}: its tensors do not fit its declared shape")
        if self.clip < 1:
            raise ModelError(f"layer {spec.name!r}: its inputs are clipped to nothing")
        largest = int(self.weight.to(torch.int64).abs().flatten(1).sum(dim=1).max()) * self.clip
        if largest > half_of(prime):
            raise ModelError(
                f"layer {spec.name!r}: an accumulator could reach {largest}, and the field holds only "
                f"{half_of(prime)}; use fewer bits"
            )
        return self

    @cached_property
    def integers(self) -> Tensor:
        """The weight in float64."""
        return self.weight.to(torch.float64)

    @cached_property
    def scales(self) -> Tensor:
        """The scale of every output value, `[outputs]`."""
        return self.spec.spread(self.scale)

    @cached_property
    def biases(self) -> Tensor:
        """The bias of every output value, `[outputs]`."""
        return self.spec.spread(self.bias)

    def quantise(self, x: Tensor) -> Tensor:
        """float32 → q(x), integers in float32; what is not a number counts as 0."""
        return torch.mul(x, self.inverse).nan_to_num_(0.0).round_().clamp_(-self.clip, self.clip)

    def dequantise_(self, z: Tensor, part: slice | None = None) -> Tensor:
        """Accumulators, integers in float32 `[n, outputs]` or some columns of it → y, in place."""
        columns = part or slice(None)
        return z.mul_(self.scales[columns]).add_(self.biases[columns])


def input_ranges(
    model: nn.Module, layers: Sequence[LinearLayer], records: Tensor
) -> Mapping[str, InputRange]:
    """What the inputs of some layers look like, by the layer's name.

    Args:
        model: in float; it is run in eval mode and not changed.
        layers: of it.
        records: to calibrate on, `[n, …]`.
    """
    largest = {layer.name: 0.0 for layer in layers}
    squares = {layer.name: 0.0 for layer in layers}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].double()
        largest[name] = max(largest[name], float(x.abs().max()))
        squares[name] += float(x.square().flatten(1).mean(dim=1).sum())

    handles = [layer.module.register_forward_pre_hook(partial(note, layer.name)) for layer in layers]
    try:
        with evaluating(model):
            for part in torch.split(records, _BATCH):
                model(part)
    finally:
        for handle in handles:
            handle.remove()
    return {name: InputRange(largest[name], squares[name] / len(records)) for name in largest}


def quantised(
    layer: LinearLayer,
    seen: InputRange,
    *,
    activation_bits: int,
    weight_bits: int,
    headroom: float = 1.0,
    prime: int = PRIME,
) -> QuantLayer:
    """A layer in fixed point, with the finest steps that its accumulators leave room for.

    Σ|W|·X ≤ (p−1)/2 must hold for every output channel, so finer inputs cost coarser weights. Of all widths of
    the inputs that is chosen which adds the least noise by the usual model of rounding (uniform, independent):
    the noise of y relative to y is about (Δx²/E[x²] + Δw²/E[w²])/12.

    Args:
        layer: of the float model.
        seen: what its inputs look like.
        activation_bits: at most, sign included.
        weight_bits: at most, sign included.
        headroom: inputs are clipped at so many times the largest seen.
        prime: p.

    Raises:
        ModelError: fewer than `LEAST_BITS` would be left; the text names the layer.
    """
    spec, module = LayerSpec.of(layer), layer.module
    weight = module.weight.detach().double().flatten(1)
    best: tuple[float, int, float, Tensor, Tensor] | None = None
    for bits in range(activation_bits, LEAST_BITS - 1, -1):
        clip = 2 ** (bits - 1) - 1
        integers, steps = _integers(weight, most=2 ** (weight_bits - 1) - 1, total=half_of(prime) // clip)
        kept = integers.abs().amax(dim=1)
        live = weight.abs().amax(dim=1) > 0
        if bool((kept[live] < 2 ** (LEAST_BITS - 1) - 1).any()):
            continue
        step = headroom * (seen.largest or 1.0) / clip
        relative = steps[live].square() / weight[live].square().mean(dim=1)
        noise = step**2 / (seen.mean_square or 1.0) + (float(relative.mean()) if len(relative) else 0.0)
        if best is None or noise < best[0]:
            best = (noise, clip, step, integers, steps)
    if best is None:
        raise ModelError(
            f"layer {layer.name!r} adds up {spec.fan_in} products: for sums below p/2 = {half_of(prime)} its "
            f"weights or inputs would keep fewer than {LEAST_BITS} bits; keep this model off this method"
        )
    _, clip, step, integers, steps = best
    bias = torch.zeros(spec.channels_out) if module.bias is None else module.bias.detach().float().cpu()
    return QuantLayer(
        spec,
        integers.to(torch.int16).reshape(spec.weight_shape),
        clip,
        float(torch.tensor(1.0 / step, dtype=torch.float32)),
        (step * steps).float(),
        bias.clone(),
    ).check(prime)


def _integers(weight: Tensor, *, most: int, total: int) -> tuple[Tensor, Tensor]:
    """Weights `[channels, fan_in]` → integers of magnitude ≤ `most` that sum up to ≤ `total`, and their steps."""
    magnitude = weight.abs()
    steps = torch.maximum(magnitude.amax(dim=1) / most, magnitude.sum(dim=1) / total)
    steps = torch.where(steps > 0, steps, 1.0)
    while True:
        integers = torch.round(weight / steps[:, None])
        excess = integers.abs().sum(dim=1) / total
        if not bool((excess > 1).any()):
            return integers, steps
        # Rounding may add up to half a unit a weight: a slightly larger step for the channels over the limit.
        steps = torch.where(excess > 1, steps * excess.clamp(max=1.01) * 1.0001, steps)
