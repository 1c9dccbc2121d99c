"""The slow oracle: the quantised model with plain int64 products, no modulus, no pads, no cloud."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from delta.bundle.store import Bundle
from delta.methods.layers import with_layers
from delta.methods.slalom.contents import layers_of, model_state, settings_of
from delta.methods.slalom.quantise import QuantLayer
from delta.methods.slalom.spec import plain_product
from delta.methods.whole import allowed_targets, rebuilt

__all__ = ["reference"]


def reference(bundle: Bundle, *, allow: Collection[str] = ()) -> nn.Module:
    """The model that a bundle of `slalom` computes: with an honest cloud the method's logits equal its, bit for bit.

    Args:
        bundle: of the method.
        allow: import targets that may be built.

    Raises:
        BundleError: the bundle does not hold what its manifest says.
    """
    layers = layers_of(bundle, settings_of(bundle.manifest))
    model = rebuilt(bundle, model_state(bundle), allowed=allowed_targets(bundle, allow))
    return with_layers(model, {layer.spec.name: _Plain(layer) for layer in layers})


class _Plain(nn.Module):
    """One layer."""

    def __init__(self, layer: QuantLayer) -> None:
        super().__init__()
        self._layer = layer
        self._weight = layer.weight.to(torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, *input_shape]` → `[n, *output_shape]`."""
        layer = self._layer
        products = plain_product(layer.spec, self._weight, layer.quantise(x.float()).to(torch.int64))
        flat = products.to(torch.float32).reshape(len(x), layer.spec.outputs)
        return layer.dequantise_(flat).view(products.shape)
