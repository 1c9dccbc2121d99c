"""Slalom's cloud half: exact products modulo p of blinded inputs, one operation a linear layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from delta.errors import BundleError, RequestError
from delta.methods.schema import Operation, TensorSpec
from delta.methods.slalom.field import EXACT, PRIME, reduce_
from delta.methods.slalom.spec import LayerSpec, exact_product

__all__ = ["SlalomHalf", "operation_name"]


def operation_name(index: int) -> str:
    """Of the operation that computes a layer's products; also names its weights."""
    return f"layer-{index}"


class SlalomHalf:
    """Serves W·x mod p of every linear layer.

    Args:
        specs: of the layers, in order.
        weights: integers, of each spec's `weight_shape`.
        device: where it computes.

    Raises:
        BundleError: weights do not fit their layer, or are too large for exact products.
    """

    def __init__(
        self, specs: Sequence[LayerSpec], weights: Sequence[Tensor], *, device: torch.device
    ) -> None:
        self._device = device
        self.operations: dict[str, Operation] = {}
        for index, (spec, weight) in enumerate(zip(specs, weights, strict=True)):
            integers = weight.to(device, torch.float64)
            if tuple(weight.shape) != spec.weight_shape or weight.is_floating_point():
                raise BundleError(
                    f"layer {spec.name!r}: the cloud's weights do not fit its declared shape; export again"
                )
            if int(integers.abs().flatten(1).sum(dim=1).max()) * PRIME >= EXACT - PRIME:
                raise BundleError(f"layer {spec.name!r}: its products modulo p would not be exact in float64")
            self.operations[operation_name(index)] = Operation(
                {"x": TensorSpec(torch.int32, ("n", *spec.input_shape))},
                {"y": TensorSpec(torch.int32, ("n", *spec.output_shape))},
                partial(self._product, spec, integers),
                batchable=True,  # exact: no record's answer depends on its neighbours
            )

    def _product(self, spec: LayerSpec, weight: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        least, most = torch.aminmax(tensors["x"])
        if int(least) < 0 or int(most) >= PRIME:
            raise RequestError(f"layer {spec.name!r}: x must hold elements of [0, {PRIME})")
        product = exact_product(spec, weight, tensors["x"].to(self._device))
        return {"y": reduce_(product).to(torch.int32)}
