"""The whole model in the cloud, records sent as they are: no privacy, and the lower bound of every cost."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from delta.bundle.manifest import Manifest
from delta.bundle.store import Bundle, CloudPart, weights_hash
from delta.errors import TrainingUnsupportedError
from delta.methods.asking import Call, checked_answer
from delta.methods.base import Method, MethodFacts, Prediction, RecordIds, StepResult
from delta.methods.records import checked_labels, checked_records
from delta.methods.registry import register_method
from delta.methods.schema import CloudHalf
from delta.methods.stepping import StepPlan
from delta.methods.whole import WholeModel, plain_bundle, rebuilt, refuse_settings
from delta.methods.whole_half import LOGITS, TRAIN, WEIGHTS, WholeHalf, weights_from_vector
from delta.transport.base import Transport

__all__ = ["CloudOnly", "plan_of"]


def plan_of(manifest: Manifest) -> StepPlan | None:
    """How the cloud may train the bundle's model; none where it only answers.

    Raises:
        ConfigError: the manifest's `plan` is none.
    """
    plan = manifest.settings.get("plan")
    return None if plan is None else StepPlan.parse(plan, what="manifest: plan")


@register_method
class CloudOnly(Method):
    """Records up, logits down."""

    facts: ClassVar[MethodFacts] = MethodFacts(
        name="cloud-only",
        summary="the whole model in the cloud, records sent as they are: no privacy",
        keeps=frozenset({"I1", "I2", "I3"}),
        protects=(),
        rests_on=("nothing",),
        trains=True,
        falls_back=False,
    )

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._manifest = bundle.manifest
        self._plan = plan_of(bundle.manifest)
        self._transport: Transport | None = None
        self._deadline_s = 10.0

    @classmethod
    def bundle_of(cls, model: WholeModel, *, plan: StepPlan | None = None, **settings: Any) -> Bundle:  # noqa: ANN401
        """All weights in the cloud.

        Args:
            model: the whole model.
            plan: lets whoever reaches the cloud train it; none for a model that only answers.
            settings: there are no others.
        """
        refuse_settings(cls.facts.name, settings, known=("plan",))
        return plain_bundle(
            model,
            cls.facts.name,
            private={},
            cloud=model.module.state_dict(),
            private_macs=0,
            cloud_macs=model.macs,
            peak_private_bytes=model.record.numel() * 4,
            settings={} if plan is None else {"plan": plan.model_dump(mode="json")},
            labels="none" if plan is None else "disclosed",
        )

    @classmethod
    def cloud_half(
        cls, part: CloudPart, *, device: torch.device, allowed: frozenset[str] = frozenset()
    ) -> CloudHalf:
        """The whole model; it trains where the manifest holds a plan."""
        manifest = part.manifest
        return WholeHalf(
            rebuilt(part, part.cloud, allowed=allowed),
            shape=manifest.input.shape,
            classes=len(manifest.class_names),
            device=device,
            plan=plan_of(manifest),
        )

    @classmethod
    def from_bundle(cls, bundle: Bundle, **options: Any) -> Self:  # noqa: ANN401
        """Build the private half, which holds nothing; `allow` is taken and not needed."""
        options.pop("allow", None)
        return cls(bundle, **options)

    def prepare(self, transport: Transport | None, *, deadline_s: float = 10.0) -> None:
        """Attach a session."""
        self._transport, self._deadline_s = transport, deadline_s

    def infer(self, x: Tensor, ids: RecordIds | None = None) -> Prediction:
        """Send the records as they are.

        Raises:
            CloudError: there is no cloud, or it failed: the private side has no model of its own.
        """
        x = checked_records(x, self._manifest.input.shape)
        call = Call(self._transport, deadline_s=self._deadline_s)
        classes = len(self._manifest.class_names)
        logits = call.ask_records(LOGITS, x, output="logits", shape=(classes,), dtype=torch.float32)
        return Prediction(logits, call.cost(self._bundle.facts), used_cloud=True)

    def train_step(self, x: Tensor, y: Tensor, ids: RecordIds | None = None) -> StepResult:
        """Send records and labels; the cloud takes the step."""
        x = checked_records(x, self._manifest.input.shape)
        y = checked_labels(y, records=len(x), classes=len(self._manifest.class_names))
        self._require_plan()
        call = Call(self._transport, deadline_s=self._deadline_s)
        answer = call.ask(TRAIN, {"x": x, "y": y})
        loss = checked_answer(answer, "loss", shape=(), dtype=torch.float32)
        return StepResult(float(loss), call.cost(self._bundle.facts))

    def trained(self) -> Bundle:
        """Fetch the weights."""
        self._require_plan()
        like = self._bundle.cloud
        call = Call(self._transport, deadline_s=self._deadline_s)
        size = sum(t.numel() for t in like.values())
        vector = checked_answer(call.ask(WEIGHTS, {}), "weights", shape=(size,), dtype=torch.float32)
        cloud = weights_from_vector(vector, like)
        fields = {name: getattr(self._manifest, name) for name in type(self._manifest).model_fields}
        fields |= {"cloud_weights_hash": weights_hash(cloud)}
        del fields["release_hash"], fields["cloud_hash"]
        return Bundle(Manifest.sealed(**fields), self._bundle.facts, {}, cloud, made_here=True)

    def _require_plan(self) -> None:
        if self._plan is None:
            raise TrainingUnsupportedError(
                "this bundle of 'cloud-only' does not let the cloud train; make it with a plan"
            )
