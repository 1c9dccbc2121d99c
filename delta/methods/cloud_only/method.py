"""The whole model in the cloud, records sent as they are: no privacy, and the lower bound of every cost."""

from __future__ import annotations

from typing import Any, ClassVar

from delta.bundle.store import Bundle
from delta.methods.base import MethodFacts
from delta.methods.registry import register_method
from delta.methods.remote import RemoteMethod
from delta.methods.stepping import StepPlan
from delta.methods.whole import WholeModel, plain_bundle, refuse_meeting_records, refuse_settings

__all__ = ["CloudOnly"]


@register_method
class CloudOnly(RemoteMethod):
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

    @classmethod
    def bundle_of(cls, model: WholeModel, *, plan: StepPlan | None = None, **settings: Any) -> Bundle:  # noqa: ANN401
        """All weights in the cloud.

        Args:
            model: the whole model.
            plan: lets whoever reaches the cloud train it; none for a model that only answers.
            settings: there are no others.

        Raises:
            ModelError: records see each other in the model.
        """
        refuse_settings(cls.facts.name, settings, known=("plan",))
        refuse_meeting_records(model, cls.facts.name)
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
