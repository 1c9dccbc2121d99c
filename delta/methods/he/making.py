"""Bundles of `he`: the circuit read off the model, and the ring that it needs."""

from __future__ import annotations

import torch

from delta.bundle.store import Bundle
from delta.errors import ConfigError
from delta.methods.he.circuit import needed_slots
from delta.methods.he.cloud import HeCloud
from delta.methods.he.network import last_layer, of_linear, read_network
from delta.methods.he.parameters import best_precision, choose_ring, key_bytes
from delta.methods.he.spec import Mode, Spec, depth_of
from delta.methods.whole import WholeModel, plain_bundle, whole_peak

__all__ = ["encrypted_bundle"]

_MESSAGE = 60 * 2**20
"""Bytes of a key that still fit a server's default message."""
_PRECISION: dict[str, int] = {"network": 26, "last-layer": 28}
"""Fewest bits where none are asked for: with them he_cnn fits a ring of degree 8192, and one layer fits 4096."""
_HEADROOM = 4.0
"""How much larger than those of the calibration records logits may be."""


def encrypted_bundle(
    model: WholeModel, method: str, *, mode: Mode, precision: int | None, integer_bits: int
) -> Bundle:
    """See `Encrypted.bundle_of`; `method` is the registry name."""
    usual = _PRECISION.get(mode)
    if usual is None:
        raise ConfigError(f"mode {mode!r} of method 'he' is none of network, last-layer")
    name = ""
    if mode == "network":
        network = read_network(model.module, model.record)
    else:
        name, linear = last_layer(model.module, model.record)
        network = of_linear(linear)
    depth = depth_of(network.patches is not None, len(network.widths) - 1)
    slots = needed_slots(network.patches, network.widths, model.input.shape)
    if precision is None:
        precision = best_precision(depth=depth, slots=slots, integer_bits=integer_bits, at_least=usual)
    ring = choose_ring(depth=depth, precision=precision, slots=slots, integer_bits=integer_bits)
    if key_bytes(ring) > _MESSAGE:
        raise ConfigError(
            f"each key of a ring of degree {ring.degree} with {sum(ring.bits)} bits weighs up to "
            f"{key_bytes(ring) >> 20} MiB, and messages hold {_MESSAGE >> 20}; use fewer layers, or a lower "
            "precision"
        )
    spec = Spec(
        mode=mode,
        layer=name,
        ring=ring,
        integer_bits=integer_bits,
        patches=network.patches,
        widths=network.widths,
    )
    _check_range(model, spec)
    front = sum(a * b for a, b in zip(network.widths[:-1], network.widths[1:], strict=True))
    bundle = plain_bundle(
        model,
        method,
        private=model.module.state_dict(),
        cloud=network.weights,
        private_macs=0 if mode == "network" else max(0, model.macs - front),
        cloud_macs=model.macs if mode == "network" else front,
        peak_private_bytes=whole_peak(model) if name else _peak(model, spec),
        settings=spec.model_dump(mode="json"),
        logit_bound=spec.bound,
    )
    HeCloud(bundle.cloud_part)  # refuses weights that vanish at this precision, and primes that there are not
    return bundle


def _check_range(model: WholeModel, spec: Spec) -> None:
    """Refuse logits that would wrap around, as far as calibration records tell."""
    if model.calibration is None:
        return
    with torch.inference_mode():
        largest = float(model.module(model.calibration).abs().max())
    if not largest * _HEADROOM < spec.bound:
        raise ConfigError(
            f"the model's logits come too near to ±{spec.bound:g}, beyond which they wrap around; give more "
            "integer_bits"
        )


def _peak(model: WholeModel, spec: Spec) -> int:
    """Bytes of one record on its way: itself, its slots, its ciphertext, and that once more as bytes."""
    ciphertext = 16 * (len(spec.ring.bits) - 1) * spec.ring.degree
    return 4 * model.record.numel() + 8 * spec.ring.slots + 2 * ciphertext
