"""What the methods share whose whole model is in the cloud: records up, logits down, and steps if it may train."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from delta.bundle.manifest import Manifest
from delta.bundle.store import Bundle, CloudPart, weights_hash
from delta.errors import TrainingUnsupportedError
from delta.methods.asking import Call, checked_answer
from delta.methods.base import Method, Prediction, RecordIds, StepResult
from delta.methods.records import checked_labels, checked_records
from delta.methods.schema import CloudHalf
from delta.methods.stepping import StepPlan
from delta.methods.whole import rebuilt
from delta.methods.whole_half import LOGITS, TRAIN, WEIGHTS, WholeHalf, weights_from_vector
from delta.transport.base import Transport

__all__ = ["RemoteMethod", "plan_of", "with_cloud_weights"]


def plan_of(manifest: Manifest) -> StepPlan | None:
    """How the cloud may train the bundle's model; none where it only answers.

    Raises:
        ConfigError: the manifest's `plan` is none.
    """
    plan = manifest.settings.get("plan")
    return None if plan is None else StepPlan.parse(plan, what="manifest: plan")


def with_cloud_weights(
    bundle: Bundle, cloud: Mapping[str, Tensor], *, settings: Mapping[str, Any] | None = None
) -> Bundle:
    """The bundle with other cloud weights, and other settings where some are given; sealed anew."""
    weights = dict(cloud)
    changes: dict[str, Any] = {} if settings is None else {"settings": dict(settings)}
    manifest = bundle.manifest.resealed(cloud_weights_hash=weights_hash(weights), **changes)
    return Bundle(manifest, bundle.facts, {}, weights, made_here=True)


class RemoteMethod(Method):
    """The private half holds no model: without a cloud there is no answer."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._manifest = bundle.manifest
        self._plan = plan_of(bundle.manifest)
        self._transport: Transport | None = None
        self._deadline_s = 10.0

    @classmethod
    def _build(cls, part: CloudPart | Bundle, allowed: Collection[str]) -> nn.Module:
        """The whole model with the cloud's weights, in eval mode."""
        return rebuilt(part, part.cloud, allowed=allowed)

    @classmethod
    def cloud_half(
        cls, part: CloudPart, *, device: torch.device, allowed: frozenset[str] = frozenset()
    ) -> CloudHalf:
        """The whole model; it trains where the manifest holds a plan."""
        manifest = part.manifest
        return WholeHalf(
            cls._build(part, allowed),
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
        """Send the records as `_request` makes them; the logits are clipped to the bundle's ±B (I4).

        Raises:
            CloudError: there is no cloud, or it failed: the private side has no model of its own.
        """
        x = checked_records(x, self._manifest.input.shape)
        call = Call(self._transport, deadline_s=self._deadline_s)
        classes = len(self._manifest.class_names)
        sent, bound = self._request(x, ids)["x"], self._manifest.logit_bound
        logits = call.ask_records(LOGITS, sent, output="logits", shape=(classes,), dtype=torch.float32)
        return Prediction(logits.clamp(-bound, bound), call.cost(self._bundle.facts), used_cloud=True)

    def train_step(self, x: Tensor, y: Tensor, ids: RecordIds | None = None) -> StepResult:
        """Send records and labels as `_request` makes them; the cloud takes the step."""
        x = checked_records(x, self._manifest.input.shape)
        y = checked_labels(y, records=len(x), classes=len(self._manifest.class_names))
        self._require_plan()
        call = Call(self._transport, deadline_s=self._deadline_s)
        answer = call.ask(TRAIN, self._request(x, ids, y))
        loss = checked_answer(answer, "loss", shape=(), dtype=torch.float32)
        return StepResult(float(loss), call.cost(self._bundle.facts))

    def trained(self) -> Bundle:
        """Fetch the weights."""
        self._require_plan()
        like = self._bundle.cloud
        call = Call(self._transport, deadline_s=self._deadline_s)
        size = sum(t.numel() for t in like.values())
        vector = checked_answer(call.ask(WEIGHTS, {}), "weights", shape=(size,), dtype=torch.float32)
        return with_cloud_weights(self._bundle, weights_from_vector(vector, like))

    def _request(self, x: Tensor, ids: RecordIds | None, y: Tensor | None = None) -> dict[str, Tensor]:
        """The one place where private tensors become what leaves (I2).

        Args:
            x: checked records `[n, *shape]`, which leave as `_outbound` makes them.
            ids: of the records.
            y: checked labels `[n]` of a training step, which leave as they are (`labels: disclosed`).
        """
        records = {"x": self._outbound(x, ids)}
        return records if y is None else {**records, "y": y}

    def _outbound(self, x: Tensor, ids: RecordIds | None) -> Tensor:
        """The records' part of `_request`, its only caller, `[n, *shape]` float32: as they are."""
        return x

    def _require_plan(self) -> None:
        if self._plan is None:
            raise TrainingUnsupportedError(
                f"this bundle of {self.facts.name!r} does not let the cloud train; make it with a plan"
            )
