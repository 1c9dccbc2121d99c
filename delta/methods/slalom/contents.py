"""What a bundle of `slalom` holds: the manifest's settings, and tensors by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from delta.bundle.manifest import Manifest
from delta.bundle.store import Bundle, CloudPart
from delta.config import Strict
from delta.errors import BundleError, ConfigError, ModelError
from delta.methods.slalom.cloud import operation_name
from delta.methods.slalom.field import PRIME
from delta.methods.slalom.quantise import QuantLayer
from delta.methods.slalom.spec import LayerSpec

__all__ = ["SlalomSettings", "cloud_weights", "layers_of", "model_state", "packed", "settings_of"]

_MODEL = "model."


class SlalomSettings(Strict):
    """The manifest's `settings`; the cloud reads them. No value range that calibration has shown is among them.

    The cloud still sees a trace of calibration: it decides how a layer's bits are split between inputs and
    weights, and how many its weights got shows in the integers that the cloud holds.

    Attributes:
        prime: p.
        repetitions: of the verification.
        layers: in order.
    """

    prime: int
    repetitions: int = Field(ge=1, le=8)
    layers: tuple[LayerSpec, ...] = Field(min_length=1)


def settings_of(manifest: Manifest) -> SlalomSettings:
    """What a manifest declares.

    Raises:
        BundleError: it declares no such thing, or another field.
    """
    try:
        settings = SlalomSettings.parse(manifest.settings, what="manifest: settings")
    except ConfigError as error:
        raise BundleError(str(error)) from None
    if settings.prime != PRIME:
        raise BundleError(
            f"manifest: the field has {settings.prime} elements, expected {PRIME}; make it again"
        )
    return settings


def packed(
    layers: Sequence[QuantLayer], state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the private and of the cloud half.

    Args:
        layers: in order.
        state: of the whole model, which the private side builds again.
    """
    private = {f"{_MODEL}{name}": tensor for name, tensor in state.items()}
    private["clips"] = torch.tensor([layer.clip for layer in layers], dtype=torch.int32)
    private["inverses"] = torch.tensor([layer.inverse for layer in layers], dtype=torch.float32)
    cloud: dict[str, Tensor] = {}
    for index, layer in enumerate(layers):
        name = operation_name(index)
        private[f"{name}.scale"], private[f"{name}.bias"] = layer.scale, layer.bias
        cloud[name] = layer.weight
    return private, cloud


def cloud_weights(part: CloudPart | Bundle, settings: SlalomSettings) -> list[Tensor]:
    """The integer weights, one a layer.

    Raises:
        BundleError: one is absent.
    """
    try:
        return [part.cloud[operation_name(index)] for index in range(len(settings.layers))]
    except KeyError as error:
        raise BundleError(f"the cloud weights hold no {error}; make the bundle again") from None


def layers_of(bundle: Bundle, settings: SlalomSettings) -> list[QuantLayer]:
    """The layers in fixed point.

    Raises:
        BundleError: a tensor is absent or does not fit, or an accumulator could exceed p/2.
    """
    weights, private = cloud_weights(bundle, settings), bundle.private
    try:
        clips, inverses = private["clips"].tolist(), private["inverses"].tolist()
        return [
            QuantLayer(
                spec,
                weight,
                clip,
                inverse,
                private[f"{operation_name(index)}.scale"],
                private[f"{operation_name(index)}.bias"],
            ).check()
            for index, (spec, weight, clip, inverse) in enumerate(
                zip(settings.layers, weights, clips, inverses, strict=True)
            )
        ]
    except (KeyError, ValueError) as error:
        raise BundleError(f"the private tensors do not fit the manifest ({error}); make it again") from None
    except ModelError as error:
        raise BundleError(str(error)) from None


def model_state(bundle: Bundle) -> dict[str, Tensor]:
    """State of the whole model."""
    return {
        name.removeprefix(_MODEL): tensor
        for name, tensor in bundle.private.items()
        if name.startswith(_MODEL)
    }
