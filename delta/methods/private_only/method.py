"""The whole model on the private side: what every other method is compared with."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from torch import nn

from delta.bundle.store import Bundle
from delta.methods.base import MethodFacts
from delta.methods.local import LocalMethod
from delta.methods.registry import register_method
from delta.methods.whole import (
    WholeModel,
    allowed_targets,
    plain_bundle,
    rebuilt,
    refuse_settings,
    whole_peak,
)

__all__ = ["PrivateOnly"]


@register_method
class PrivateOnly(LocalMethod):
    """The whole model, all private; nothing leaves."""

    facts: ClassVar[MethodFacts] = MethodFacts(
        name="private-only",
        summary="the whole model on the private side; nothing leaves",
        keeps=frozenset({"I1", "I2", "I3"}),
        protects=("query input", "query label", "training data", "weights", "integrity"),
        rests_on=("TEE",),
        trains=True,
        offloads=False,
    )

    @classmethod
    def bundle_of(cls, model: WholeModel, **settings: Any) -> Bundle:  # noqa: ANN401
        """All weights on the private side; there are no settings."""
        refuse_settings(cls.facts.name, settings)
        return plain_bundle(
            model,
            cls.facts.name,
            private=model.module.state_dict(),
            cloud={},
            private_macs=model.macs,
            cloud_macs=0,
            peak_private_bytes=whole_peak(model),
        )

    @classmethod
    def _load(cls, bundle: Bundle, allow: Collection[str]) -> nn.Module:
        return rebuilt(bundle, bundle.private, allowed=allowed_targets(bundle, allow))
