"""A model's layers, read off as what an encrypted circuit runs: matrices with a square between any two."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from delta.errors import ModelError
from delta.methods.he.spec import Patches
from delta.methods.layers import linear_layers, with_layers
from delta.models.modes import evaluating
from delta.models.square_net import Quadratic, Square

__all__ = ["Affine", "Network", "last_layer", "of_linear", "read_network"]

_AFFINE = (
    nn.Conv2d,
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
)
_MOST_VALUES = 1 << 14
"""Values of one record in front of a layer, at most: as many as the largest ring has slots."""
_TOLERANCE = 1e-6

Named = tuple[str, nn.Module]


@dataclass(frozen=True)
class Affine:
    """One encrypted layer: `weight [outputs, inputs]` and `bias [outputs]`, float64."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Network:
    """What an encrypted computation is made of.

    Attributes:
        patches: the convolution in front; its layer's weight is `[channels, values of a patch]`.
        layers: with a square between any two.
        widths: values in front of each linear layer, and the logits last.
    """

    patches: Patches | None
    layers: tuple[Affine, ...]
    widths: tuple[int, ...]

    @property
    def weights(self) -> dict[str, Tensor]:
        """By name, float32."""
        return {
            f"{number}.{name}": value.float()
            for number, layer in enumerate(self.layers)
            for name, value in (("weight", layer.weight), ("bias", layer.bias))
        }

    def plain(self, x: Tensor) -> Tensor:
        """Records `[n, …]` → logits `[n, classes]`, float64: what the circuit computes, without encryption."""
        x = x.double()
        for number, layer in enumerate(self.layers):
            if number:
                x = x.square()
            if number == 0 and self.patches is not None:
                x = (layer.weight @ self.patches.of(x) + layer.bias[:, None]).flatten(1)
            else:
                x = x.flatten(1) @ layer.weight.T + layer.bias
        return x


def read_network(model: nn.Module, record: Tensor) -> Network:
    """The circuit of a model whose layers stand in a row.

    Batch normalisation and averages become part of the linear layer beside them; a quadratic activation becomes
    a square, its scalars part of the layers around it.

    Args:
        model: an `nn.Sequential`, nested or not, in eval mode; left as it is.
        record: `[1, …]`.

    Raises:
        ModelError: a layer that cannot run encrypted, by its name, and what to use in its place.
    """
    if not isinstance(model, nn.Sequential):
        raise ModelError(
            f"mode 'network' reads an nn.Sequential, layer by layer, and {type(model).__name__} is none; write the "
            "model as one, or encrypt its final layer alone (setting mode=last-layer)"
        )
    segments, activations = _segments(model)
    patches: Patches | None = None
    layers: list[Affine] = []
    widths: list[int] = []
    x = record.double()
    for number, segment in enumerate(segments):
        convolution = _convolution(segment) if number == 0 and activations else None
        if convolution is not None:
            patches = _patches_of(segment[0][0], convolution)
            bias = convolution.bias if convolution.bias is not None else torch.zeros(convolution.out_channels)
            layers.append(Affine(convolution.weight.detach().double().flatten(1), bias.detach().double()))
        else:
            widths.append(x[0].numel())
            layers.append(_matrix(segment, x))
        x = _through(segment, x)
    widths.append(x[0].numel())
    network = Network(patches, tuple(_folded(layers, activations)), tuple(widths))
    _check(network, model, record)
    return network


def of_linear(layer: nn.Linear) -> Network:
    """One linear layer and nothing else."""
    bias = getattr(layer, "bias", None)
    weight = layer.weight.detach().double()
    own = Affine(weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().double())
    return Network(None, (own,), (layer.in_features, layer.out_features))


def last_layer(model: nn.Module, record: Tensor) -> tuple[str, nn.Linear]:
    """Name and module of the linear layer whose result is a model's.

    Raises:
        ModelError: there is none.
    """
    layer = linear_layers(model, record)[-1]
    if not isinstance(layer.module, nn.Linear):
        raise ModelError(
            f"mode 'last-layer' encrypts a final nn.Linear, and the last layer {layer.name!r} is "
            f"{type(layer.module).__name__}"
        )
    x = _like(record)
    front = with_layers(model, {layer.name: nn.Identity()})
    with evaluating(model), evaluating(front), torch.no_grad():
        features, logits = front(x), model(x)
        fits = features.dim() == 2 and torch.allclose(layer.module(features), logits, rtol=1e-4, atol=1e-4)
    if not fits:
        raise ModelError(
            f"mode 'last-layer' encrypts a final nn.Linear, and something comes after {layer.name!r}; return its "
            "result as it is"
        )
    return layer.name, layer.module


def _segments(model: nn.Sequential) -> tuple[list[list[Named]], list[nn.Module]]:
    """Linear layers between activations, and the activations."""
    segments: list[list[Named]] = [[]]
    activations: list[nn.Module] = []
    for name, layer in _in_a_row("", model):
        if isinstance(layer, (Square, Quadratic)):
            if not any(isinstance(part, (nn.Conv2d, nn.Linear)) for _, part in segments[-1]):
                raise ModelError(f"layer {name!r} follows no linear layer; put one in front of it")
            activations.append(layer)
            segments.append([])
        elif isinstance(layer, _AFFINE):
            segments[-1].append((name, layer))
        else:
            raise ModelError(
                f"layer {name!r} ({type(layer).__name__}) cannot run encrypted; {_instead(layer)}"
            )
    if not any(isinstance(part, nn.Linear) for _, part in segments[-1]):
        raise ModelError("an encrypted network ends with a linear layer; append an nn.Linear")
    return segments, activations


def _in_a_row(prefix: str, model: nn.Sequential) -> Iterator[Named]:
    for name, layer in model.named_children():
        if isinstance(layer, nn.Sequential):
            yield from _in_a_row(f"{prefix}{name}.", layer)
        else:
            yield f"{prefix}{name}", layer


def _instead(layer: nn.Module) -> str:
    kind = type(layer).__name__
    if "Max" in kind:
        return "use nn.AvgPool2d and train again"
    if type(layer).__module__ == "torch.nn.modules.activation":
        return "use delta.models.square_net.Square or Quadratic in its place and train again"
    if "Norm" in kind:
        return "use nn.BatchNorm2d, which becomes part of the layer before it"
    return "use linear layers, averages, and square activations, or the setting mode=last-layer"


def _convolution(segment: Sequence[Named]) -> nn.Conv2d | None:
    """The one convolution that a segment comes to, batch normalisation included; none where it is more."""
    first, *others = (layer for _, layer in segment)
    if not isinstance(first, nn.Conv2d) or first.groups != 1 or first.padding_mode != "zeros":
        return None
    found = copy.deepcopy(first).double()
    for layer in others:
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            found = fuse_conv_bn_eval(found, copy.deepcopy(layer).double())
        elif not isinstance(layer, (nn.Identity, nn.Dropout, nn.Dropout2d)):
            return None
    return found


def _patches_of(name: str, layer: nn.Conv2d) -> Patches:
    if isinstance(layer.padding, str):
        raise ModelError(f"layer {name!r} pads by {layer.padding!r}; give its padding as numbers")
    pairs = {
        key: tuple(int(part) for part in getattr(layer, f"{key}_size" if key == "kernel" else key))
        for key in ("kernel", "stride", "padding", "dilation")
    }
    return Patches.parse({"channels": layer.out_channels, **pairs}, what=f"layer {name!r}")


def _matrix(segment: Sequence[Named], x: Tensor) -> Affine:
    """A row of linear layers as one matrix: what they make of each unit vector."""
    values = x[0].numel()
    if values > _MOST_VALUES:
        raise ModelError(
            f"layer {segment[0][0]!r} reads {values} values a record, and at most {_MOST_VALUES} fit a ciphertext; "
            "use a larger stride in front of it"
        )
    with torch.no_grad():
        bias = _through(segment, torch.zeros_like(x)).flatten()
        units = torch.eye(values, dtype=torch.float64).view(values, *x.shape[1:])
        columns = torch.cat([_through(segment, part).flatten(1) for part in torch.split(units, 256)])
    return Affine((columns - bias).T.contiguous(), bias)


def _through(segment: Sequence[Named], x: Tensor) -> Tensor:
    with torch.no_grad():
        for name, layer in segment:
            own = copy.deepcopy(layer).double().eval()
            try:
                x = own(x)
            except (RuntimeError, ValueError) as error:
                line = next(iter(str(error).splitlines()), "")[:120]
                raise ModelError(f"layer {name!r} does not take what comes before it: {line}") from None
    return x


def _folded(layers: Sequence[Affine], activations: Sequence[nn.Module]) -> Iterator[Affine]:
    """a·x² + b·x + c = a·(x + b/2a)² + (c − b²/4a): the scalars go into the layers around the square."""
    scale, constant = 1.0, 0.0
    for number, layer in enumerate(layers):
        weight, bias = layer.weight, layer.bias
        if number:
            bias = bias + constant * weight.sum(1)
            weight = scale * weight
        scale, constant = 1.0, 0.0
        if number < len(activations):
            activation = activations[number]
            if isinstance(activation, Quadratic):
                a, b, c = (float(value.detach()) for value in (activation.a, activation.b, activation.c))
                if abs(a) < 1e-6:
                    raise ModelError("a quadratic activation has lost its square (a = 0); train it again")
                bias = bias + b / (2 * a)
                scale, constant = a, c - b * b / (4 * a)
        yield Affine(weight, bias)


def _check(network: Network, model: nn.Module, record: Tensor) -> None:
    """A forward of the user's own may do something else than its layers in a row."""
    x = _like(record)
    own = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        expected, found = own(x.double()), network.plain(x)
    scale = max(1.0, float(expected.abs().max()))
    if expected.shape != found.shape or not float((expected - found).abs().max()) <= _TOLERANCE * scale:
        raise ModelError(
            f"the forward of {type(model).__name__} does something else than its layers one after the other; "
            "leave nn.Sequential's own"
        )
    for number, layer in enumerate(network.layers):
        if not bool(torch.isfinite(layer.weight).all() and torch.isfinite(layer.bias).all()):
            raise ModelError(f"linear layer {number} has weights that are not finite; train the model again")


def _like(record: Tensor) -> Tensor:
    """Three records to try a model on."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, *record.shape[1:], generator=generator)
