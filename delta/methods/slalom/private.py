"""Slalom's private half: everything but the linear layers' products."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from delta.bundle.store import Bundle, CloudPart
from delta.errors import ConfigError, TrainingUnsupportedError
from delta.methods.asking import Call
from delta.methods.base import Method, MethodFacts, Prediction, RecordIds, StepResult
from delta.methods.failures import reason_of
from delta.methods.layers import linear_layers, with_layers
from delta.methods.records import checked_records
from delta.methods.registry import register_method
from delta.methods.schema import CloudHalf
from delta.methods.slalom.cloud import SlalomHalf
from delta.methods.slalom.contents import (
    SlalomSettings,
    cloud_weights,
    layers_of,
    model_state,
    packed,
    settings_of,
)
from delta.methods.slalom.field import PRIME
from delta.methods.slalom.pads import Pads, pad_bytes
from delta.methods.slalom.quantise import LEAST_BITS, input_ranges, quantised
from delta.methods.slalom.runner import Pass, Runner
from delta.methods.slalom.verify import verification_macs
from delta.methods.whole import WholeModel, allowed_targets, plain_bundle, rebuilt, refuse_settings
from delta.models.memory import peak_memory
from delta.transport.base import Transport
from delta.transport.inprocess import InProcessTransport

__all__ = ["Slalom"]

_MOST_BITS = 15
_PATIENT_S = 600.0


@register_method
class Slalom(Method):
    """Linear layers in the cloud under one-time pads, checked; everything else private.

    Args:
        bundle: of this method.
        allow: import targets that the bundle may build here.
        pads: records for which `prepare` makes pads; further ones are made when they are needed.
    """

    facts: ClassVar[MethodFacts] = MethodFacts(
        name="slalom",
        summary="linear layers in the cloud on blinded inputs, exact and verified; the rest private",
        keeps=frozenset({"I2", "I3"}),
        protects=("query input", "query label", "integrity"),
        rests_on=("TEE", "one-time pad"),
        trains=False,
    )

    def __init__(self, bundle: Bundle, *, allow: Collection[str] = (), pads: int = 0) -> None:
        if pads < 0:
            raise ConfigError(f"pads is {pads}; give how many records to make pads for, 0 or more")
        settings = settings_of(bundle.manifest)
        layers = layers_of(bundle, settings)
        self._bundle, self._wanted_pads = bundle, pads
        self._pads = Pads(layers)
        self._runner = Runner(layers, self._pads, repetitions=settings.repetitions)
        model = rebuilt(bundle, model_state(bundle), allowed=allowed_targets(bundle, allow))
        self._model = with_layers(model, self._runner.modules()).requires_grad_(False)
        self._pad_bytes = pad_bytes(layers)
        self._precompute_macs = sum(layer.spec.macs for layer in layers)
        # What the model multiplies outside of its layers, such as attention's products.
        self._other_macs = bundle.facts.private_macs - sum(
            verification_macs(layer.spec, repetitions=settings.repetitions) for layer in layers
        )
        self._busy = threading.Lock()
        self._transport: Transport | None = None
        self._deadline_s = 10.0

    @classmethod
    def bundle_of(
        cls,
        model: WholeModel,
        *,
        activation_bits: int = 12,
        weight_bits: int = 12,
        headroom: float = 2.0,
        repetitions: int = 2,
        **settings: Any,  # noqa: ANN401
    ) -> Bundle:
        """The model in fixed point, its value ranges taken from the calibration records.

        Args:
            model: the whole model, with calibration records.
            activation_bits: of a layer's inputs, at most, sign included; the field may leave room for fewer.
            weight_bits: of the weights, likewise.
            headroom: a layer's inputs are clipped at so many times the largest that calibration has shown.
            repetitions: of the verification: a wrong answer passes with probability (2/p)^repetitions at most.
            settings: there are no others.

        Raises:
            ConfigError: there are no calibration records, or a setting is out of range.
            ModelError: a layer does not fit the field; the text names it.
        """
        known = ("activation_bits", "weight_bits", "headroom", "repetitions")
        refuse_settings(cls.facts.name, settings, known=known)
        _check_range("activation_bits", activation_bits, LEAST_BITS, _MOST_BITS)
        _check_range("weight_bits", weight_bits, LEAST_BITS, _MOST_BITS)
        _check_range("headroom", headroom, 1, 16)
        _check_range("repetitions", repetitions, 1, 8)
        if model.calibration is None or len(model.calibration) == 0:
            raise ConfigError(
                "method 'slalom' chooses value ranges from records; give calibration records (--data SOURCE)"
            )
        found = linear_layers(model.module, model.record)
        seen = input_ranges(model.module, found, model.calibration)
        layers = [
            quantised(
                layer,
                seen[layer.name],
                activation_bits=activation_bits,
                weight_bits=weight_bits,
                headroom=headroom,
            )
            for layer in found
        ]
        specs = tuple(layer.spec for layer in layers)
        private, cloud = packed(layers, model.module.state_dict())
        linear_macs = sum(spec.macs for spec in specs)
        checks = sum(verification_macs(spec, repetitions=repetitions) for spec in specs)
        declared = SlalomSettings(prime=PRIME, repetitions=repetitions, layers=specs)
        draft = plain_bundle(
            model,
            cls.facts.name,
            private=private,
            cloud=cloud,
            private_macs=max(0, model.macs - linear_macs) + checks,
            cloud_macs=linear_macs,
            peak_private_bytes=0,
            settings=declared.model_dump(mode="json"),
        )
        peak = _online_peak(draft, model.record) + pad_bytes(layers)
        peak += 4 * max(spec.outputs for spec in specs)  # of an answer, which the cloud's thread has made
        return replace(draft, facts=draft.facts.model_copy(update={"peak_private_bytes": peak}))

    @classmethod
    def cloud_half(
        cls, part: CloudPart, *, device: torch.device, allowed: frozenset[str] = frozenset()
    ) -> CloudHalf:
        """The layers' products; the model itself is not built there, so no target needs leave."""
        settings = settings_of(part.manifest)
        return SlalomHalf(settings.layers, cloud_weights(part, settings), device=device)

    @classmethod
    def from_bundle(cls, bundle: Bundle, **options: Any) -> Self:  # noqa: ANN401
        """Build the private half; options are `allow` and `pads`."""
        return cls(bundle, **options)

    @property
    def pads_left(self) -> int:
        """Records that can be inferred before further pads are needed."""
        return self._pads.left

    def precompute(self, records: int) -> float:
        """Make pads for further records, ahead of them; returns the milliseconds that it took."""
        return self._pads.add(records)

    def prepare(self, transport: Transport | None, *, deadline_s: float = 10.0) -> None:
        """Attach a session, draw the secrets of the verification, and make the pads that were asked for."""
        self._transport, self._deadline_s = transport, deadline_s
        if transport is not None:
            self._runner.draw()
            self._pads.ensure(self._wanted_pads)

    def infer(self, x: Tensor, ids: RecordIds | None = None) -> Prediction:
        """Run the model, one round trip a linear layer.

        After a failure of the cloud the rest of this batch is computed here, with the same integers: the logits
        are the same, bit for bit, whatever the cloud does. Pads that are missing are made first: their time is
        in `extras["precompute_ms"]` and not in the cost.
        """
        x = checked_records(x, self._bundle.manifest.input.shape)
        with self._busy, torch.inference_mode():
            asks = self._transport is not None
            precompute_ms = self._pads.ensure(len(x)) if asks else 0.0
            call = Call(self._transport, deadline_s=self._deadline_s)
            current = self._runner.current = Pass(call if asks else None)
            logits: Tensor = self._model(x).float()
            cost = replace(call.cost(self._bundle.facts), private_macs=self._other_macs + current.macs)
        used_cloud = asks and current.failure is None
        return Prediction(
            logits.clone(),
            cost,
            used_cloud=used_cloud,
            reason="" if used_cloud else reason_of(current.failure),
            detail="" if current.failure is None else str(current.failure),
            extras={
                "precompute_ms": precompute_ms,
                "precompute_macs": self._precompute_macs,
                "pad_bytes": self._pad_bytes,
                "pads_left": self._pads.left,
            },
        )

    def train_step(self, x: Tensor, y: Tensor, ids: RecordIds | None = None) -> StepResult:
        """Not offered: see the error."""
        raise TrainingUnsupportedError(
            "method 'slalom' cannot train: every step changes the weights, so that W·r would have to be computed "
            "privately again for every record and step, which costs as much as the layer itself; and gradients "
            "do not survive fixed point of so few bits"
        )


def _online_peak(bundle: Bundle, record: Tensor) -> int:
    """Bytes of live tensors while one record `[1, …]` is inferred, with an honest cloud and pads made before."""
    method = Slalom(bundle)
    method.precompute(1)
    with InProcessTransport(Slalom.cloud_half(bundle.cloud_part, device=torch.device("cpu"))) as transport:
        method.prepare(transport, deadline_s=_PATIENT_S)
        return peak_memory(method.infer, record)


def _check_range(name: str, value: float, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(f"{name} is {value}; method 'slalom' takes {least} to {most}")
