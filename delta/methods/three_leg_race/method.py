"""3LegRace: every convolution's input is split into a low-rank private part and a noised residual for the cloud."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from delta.bundle.store import Bundle, CloudPart, weights_hash
from delta.errors import BundleError, CloudAnswerError, CloudError, ConfigError
from delta.methods.asking import Call
from delta.methods.base import Method, MethodFacts, Prediction, RecordIds, StepResult
from delta.methods.failures import reason_of
from delta.methods.records import checked_labels, checked_records
from delta.methods.registry import register_method
from delta.methods.schema import CloudHalf
from delta.methods.stepping import Stepper, StepPlan
from delta.methods.three_leg_race.cloud import CloudLayers, weight_name
from delta.methods.three_leg_race.layer import Trip
from delta.methods.three_leg_race.legs import AskedLeg
from delta.methods.three_leg_race.network import SplitNetwork
from delta.methods.three_leg_race.outbound import NoiseSource
from delta.methods.three_leg_race.settings import SplitRule
from delta.methods.whole import WholeModel, allowed_targets, plain_bundle, rebuilt, refuse_settings
from delta.release.ids import length_prefixed, record_digest
from delta.transport.base import Transport

__all__ = ["ThreeLegRace"]

_RULE = ("energy", "max_rank", "noise_ratio")


@register_method
class ThreeLegRace(Method):
    """Low-rank parts, non-linear and linear layers here; residuals of the convolutions in the cloud.

    Args:
        bundle: whose private weights are the whole model's.
        allow: import targets that the bundle may build here.
        plan: of `train_step`.
        device: where the private side computes.
        seed: of the noise, for repeatable runs; none draws a secret, and then two private halves that are given
            the same record differ in its noise.
    """

    facts: ClassVar[MethodFacts] = MethodFacts(
        name="three-leg-race",
        summary="low-rank part of each convolution's input private, the noised residual in the cloud (AsymML)",
        keeps=frozenset({"I2"}),
        protects=("query input", "training data"),
        rests_on=("nothing",),
        trains=True,
    )

    def __init__(
        self,
        bundle: Bundle,
        *,
        allow: Collection[str] = (),
        plan: StepPlan | None = None,
        device: torch.device | str = "cpu",
        seed: int | None = None,
    ) -> None:
        if plan is not None and plan.precision != "float32":
            raise ConfigError("method 'three-leg-race' trains in float32 alone; drop the plan's precision")
        self._bundle = bundle
        self._manifest = bundle.manifest
        settings = bundle.manifest.settings
        self._rule = SplitRule.parse({name: settings.get(name) for name in _RULE}, what="manifest")
        model = rebuilt(bundle, bundle.private, allowed=allowed_targets(bundle, allow))
        self._network = SplitNetwork(model, torch.zeros(1, *bundle.manifest.input.shape))
        if self._network.described() != settings.get("layers"):
            raise BundleError("the manifest's layers are not the model's; make the bundle again")
        self._network.module.to(device)
        self._device = torch.device(device)
        self._plan = plan or StepPlan()
        self._noise = NoiseSource(seed)
        self._stepper: Stepper | None = None
        self._steps = 0
        self._transport: Transport | None = None
        self._deadline_s = 10.0
        self._lock = threading.Lock()

    @classmethod
    def bundle_of(
        cls,
        model: WholeModel,
        *,
        energy: float = 0.1,
        max_rank: int = 32,
        noise_ratio: float = 0.1,
        **settings: Any,  # noqa: ANN401
    ) -> Bundle:
        """All weights on the private side, and those of the convolutions in the cloud as well.

        The ranks of the model's calibration records say what the private side computes; where there are none it
        is counted with the highest rank that the rule allows.

        Args:
            model: the whole model.
            energy: the residual's share of a record's sum of squares at which no further term is added.
            max_rank: the most terms.
            noise_ratio: the noise's standard deviation in units of the residual's root mean square.
            settings: there are no others.

        Raises:
            ModelError: the model has no convolution, or one that pads unevenly.
        """
        refuse_settings(cls.facts.name, settings, known=_RULE)
        given = {"energy": energy, "max_rank": max_rank, "noise_ratio": noise_ratio}
        rule = SplitRule.parse(given, what=f"settings of method {cls.facts.name!r}")
        network = SplitNetwork(model.module, model.record)
        look = network.measured(rule, model.calibration)
        conv_macs = sum(layer.geometry.macs for layer in network.layers)
        return plain_bundle(
            model,
            cls.facts.name,
            private=model.module.state_dict(),
            cloud={weight_name(layer.index): layer.weight for layer in network.layers},
            private_macs=model.macs - conv_macs + look.macs,
            cloud_macs=conv_macs,
            peak_private_bytes=look.peak_bytes,
            settings={**rule.model_dump(mode="json"), "layers": network.described()},
            figures={f"rank_{name}": float(rank) for name, rank in look.ranks.items()},
        )

    @classmethod
    def cloud_half(
        cls, part: CloudPart, *, device: torch.device, allowed: frozenset[str] = frozenset()
    ) -> CloudHalf:
        """The convolutions; no code of the model's is built or needed."""
        return CloudLayers.of(part.manifest.settings.get("layers"), part.cloud, device=device)

    @classmethod
    def from_bundle(cls, bundle: Bundle, **options: Any) -> Self:  # noqa: ANN401
        """Build the private half; options are `allow`, `plan`, `device` and `seed`."""
        return cls(bundle, **options)

    def prepare(self, transport: Transport | None, *, deadline_s: float = 10.0) -> None:
        """Attach a session."""
        self._transport, self._deadline_s = transport, deadline_s

    def infer(self, x: Tensor, ids: RecordIds | None = None) -> Prediction:
        """Run the model, each convolution on two legs.

        Where the cloud fails the whole model is run again on this side: no answer of the cloud's is left in it.
        `extras["ranks"]` holds each layer's ranks, one a record, where the cloud was used.
        """
        x = checked_records(x, self._manifest.input.shape)
        if ids is not None:
            ids.check(len(x))
        call = Call(self._transport, deadline_s=self._deadline_s)
        failure: CloudError | None = None
        macs, extras = 0, {}
        with self._lock, torch.inference_mode(False), torch.no_grad():
            here = x.clone().to(self._device)
            logits = None
            if self._transport is not None:
                trip = self._trip(call, [b"infer", *self._state()], x)
                try:
                    logits = self._network.run(here, trip)
                    if not bool(logits.isfinite().all()):
                        raise CloudAnswerError("after the cloud's answers the logits are not finite")
                    extras = {"ranks": {name: ranks.tolist() for name, ranks in trip.ranks.items()}}
                except CloudError as error:
                    failure, logits = error, None
                macs = trip.macs
            used = logits is not None
            if logits is None:
                logits = self._network.run(here, None)
                macs += self._bundle.facts.cloud_macs
        cost = replace(call.cost(self._bundle.facts), private_macs=macs + self._network.other_macs)
        logits = logits.float().cpu()
        if used:
            return Prediction(logits, cost, used_cloud=True, extras=extras)
        detail = "" if failure is None else str(failure)
        return Prediction(logits, cost, used_cloud=False, reason=reason_of(failure), detail=detail)

    def train_step(self, x: Tensor, y: Tensor, ids: RecordIds | None = None) -> StepResult:
        """One step of AdamW on the whole model; residuals, weights and gradients reach the cloud.

        The cost's MACs are those of the forward pass.
        """
        x = checked_records(x, self._manifest.input.shape)
        y = checked_labels(y, records=len(x), classes=len(self._manifest.class_names))
        if ids is not None:
            ids.check(len(x))
        module = self._network.module
        call = Call(self._transport, deadline_s=self._deadline_s)
        with self._lock:
            if self._stepper is None:
                module.requires_grad_(True)
                self._stepper = Stepper(module, self._plan)
            trip = self._trip(call, [b"train", *self._state()], x)
            with self._network.passing(trip):
                loss = self._stepper.step(x.to(self._device), y.to(self._device))
            self._steps += 1
        cost = replace(call.cost(self._bundle.facts), private_macs=trip.macs + self._network.other_macs)
        return StepResult(loss, cost)

    def trained(self) -> Bundle:
        """The bundle with the weights as they are now, those of the cloud part among them."""
        state = self._network.module.state_dict()
        private = {name: t.detach().cpu().clone() for name, t in state.items()}
        cloud = {
            weight_name(layer.index): layer.weight.detach().cpu().clone() for layer in self._network.layers
        }
        # Gradients tell labels.
        labels = "disclosed" if self._steps else self._manifest.labels
        manifest = self._manifest.resealed(cloud_weights_hash=weights_hash(cloud), labels=labels)
        facts = self._bundle.facts.model_copy(update={"weights_hash": weights_hash(private)})
        return Bundle(manifest, facts, private, cloud, made_here=True)

    def _state(self) -> Sequence[bytes]:
        """Of the weights in force: under others a record's noise is another."""
        return (self._manifest.cloud_hash.encode(), self._steps.to_bytes(8, "big"))

    def _trip(self, call: Call, what: Sequence[bytes], x: Tensor) -> Trip:
        return Trip(
            AskedLeg(call),
            self._rule,
            noise=self._noise,
            contexts=[length_prefixed(*what, record_digest(record)) for record in x],
            fresh=self._steps > 0 or what[0] == b"train",
        )
