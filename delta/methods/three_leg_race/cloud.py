"""The cloud half: the convolutions of a model, on whatever residuals come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from delta.errors import BundleError, ConfigError
from delta.methods.schema import Operation, TensorSpec
from delta.methods.three_leg_race.geometry import Geometry

__all__ = ["CloudLayers", "forward_op", "given_op", "gradient_op", "weight_name"]


def forward_op(index: int) -> str:
    """Operation: residuals to their convolution, with the bundle's weights."""
    return f"layer-{index}"


def given_op(index: int) -> str:
    """Operation: the same with weights that come along, as they are in training."""
    return f"train-layer-{index}"


def gradient_op(index: int) -> str:
    """Operation: residuals, weights and the answer's gradient to those of input and weights."""
    return f"grad-{index}"


def weight_name(index: int) -> str:
    """Of a layer's weights in the cloud part."""
    return f"layer-{index}.weight"


class CloudLayers:
    """Serves the convolutions one by one. It keeps nothing from one request to the next, in training neither.

    No code of the model's is needed: the manifest says how each convolution lies.

    Args:
        layers: geometry of each convolution.
        weights: by `weight_name`.
        device: where it computes.

    Raises:
        BundleError: a layer has no weights, others, or no output.
    """

    def __init__(
        self, layers: Sequence[Geometry], weights: Mapping[str, Tensor], *, device: torch.device
    ) -> None:
        self._device = device
        self._weights: list[Tensor] = []
        self.operations: dict[str, Operation] = {}
        expected = {weight_name(i): layer.weight for i, layer in enumerate(layers)}
        if {name: tuple(t.shape) for name, t in weights.items()} != expected:
            raise BundleError("the manifest's layers do not fit the cloud's weights; make the bundle again")
        for index, layer in enumerate(layers):
            if min(layer.output) < 1 or layer.input[0] % layer.groups or layer.channels % layer.groups:
                raise BundleError(f"layer {index} of the manifest is no convolution; make the bundle again")
            # Copied outside of inference mode and of whoever else holds them.
            self._weights.append(weights[weight_name(index)].detach().to(device, torch.float32).clone())
            x, y = _records(layer.input), _records(layer.output)
            w = TensorSpec(torch.float32, layer.weight)
            self.operations[forward_op(index)] = Operation(
                {"x": x}, {"y": y}, partial(self._forward, layer, index), batchable=True
            )
            self.operations[given_op(index)] = Operation(
                {"x": x, "w": w}, {"y": y}, partial(self._forward, layer, index)
            )
            self.operations[gradient_op(index)] = Operation(
                {"x": x, "w": w, "dy": y}, {"dx": x, "dw": w}, partial(self._gradients, layer)
            )

    @classmethod
    def of(cls, settings: object, weights: Mapping[str, Tensor], *, device: torch.device) -> CloudLayers:
        """From the manifest's list of layers.

        Raises:
            BundleError: it is none, or as above.
        """
        if not isinstance(settings, (list, tuple)):
            raise BundleError("the manifest lists no layers; make the bundle again")
        try:
            layers = [Geometry.parse(one, what=f"manifest: layer {i}") for i, one in enumerate(settings)]
        except ConfigError as error:
            raise BundleError(str(error)) from None
        return cls(layers, weights, device=device)

    def _forward(self, layer: Geometry, index: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = tensors["w"].to(self._device) if "w" in tensors else self._weights[index]
        return {"y": layer.convolve(tensors["x"].to(self._device), weight).cpu()}

    def _gradients(self, layer: Geometry, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, weight, gradient = (tensors[name].to(self._device) for name in ("x", "w", "dy"))
        dx, dw = layer.gradients(gradient, x, weight)
        return {"dx": dx.cpu().contiguous(), "dw": dw.cpu().contiguous()}


def _records(shape: tuple[int, int, int]) -> TensorSpec:
    return TensorSpec(torch.float32, ("n", *shape))
