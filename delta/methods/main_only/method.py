"""A small private model alone: what Delta must beat, at the same private MACs, to be worth anything."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from torch import nn

from delta.bundle.manifest import Architecture
from delta.bundle.store import Bundle
from delta.errors import BundleError, ConfigError, ModelError
from delta.methods.base import MethodFacts
from delta.methods.local import LocalMethod
from delta.methods.registry import register_method
from delta.methods.whole import WholeModel, plain_bundle, refuse_settings
from delta.models.macs import count_macs
from delta.models.main_model import build_main, light_budget
from delta.models.memory import peak_memory

__all__ = ["MainOnly"]

_BUILDER = "delta.models.main_model:build_main"


@register_method
class MainOnly(LocalMethod):
    """The largest light model that a budget of MACs allows, reading the image; nothing leaves."""

    facts: ClassVar[MethodFacts] = MethodFacts(
        name="main-only",
        summary="a small private model alone, of a given MAC budget; nothing leaves",
        keeps=frozenset({"I1", "I2", "I3"}),
        protects=("query input", "query label", "training data", "weights", "integrity"),
        rests_on=("TEE",),
        trains=True,
        offloads=False,
    )

    @classmethod
    def bundle_of(
        cls,
        model: WholeModel,
        *,
        private_macs: int | None = None,
        seed: int = 0,
        **settings: Any,  # noqa: ANN401
    ) -> Bundle:
        """A fresh light model for the records and classes of a whole one; `train_step` trains it.

        Args:
            model: whose task it has; its weights are not used.
            private_macs: the budget, MACs a record; none takes a hundredth of the whole model's.
            seed: of the weights.
            settings: there are no others.

        Raises:
            ModelError: no light model fits the budget.
        """
        refuse_settings(cls.facts.name, settings, known=("private_macs", "seed"))
        channels, height, width = model.input.shape
        if private_macs is not None and private_macs < 1:
            raise ConfigError(f"private_macs is a budget of at least 1 MAC a record, got {private_macs}")
        budget = private_macs or light_budget(
            model.macs, in_channels=channels, size=(height, width), classes=model.classes
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            small = build_main(
                layout="light",
                in_channels=channels,
                size=(height, width),
                classes=model.classes,
                max_macs=budget,
            ).eval()
        with torch.no_grad():
            peak = peak_memory(small, model.record)
        return plain_bundle(
            model,
            cls.facts.name,
            private=small.state_dict(),
            cloud={},
            private_macs=count_macs(small, model.record),
            cloud_macs=0,
            peak_private_bytes=peak,
            architecture=Architecture(target=_BUILDER, arguments=small.settings),
        )

    @classmethod
    def _load(cls, bundle: Bundle, allow: Collection[str]) -> nn.Module:
        try:
            module = build_main(**bundle.manifest.architecture.arguments)
            module.load_state_dict(bundle.private)
        except (ModelError, TypeError, RuntimeError):
            raise BundleError("the manifest declares no light model that fits the weights") from None
        return module.eval()
