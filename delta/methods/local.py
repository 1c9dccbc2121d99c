"""What the methods without a cloud share: one module on the private side, trained and run there."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import Any, Self

import torch
from torch import Tensor, nn

from delta.bundle.store import Bundle, CloudPart, weights_hash
from delta.methods.asking import Call
from delta.methods.base import Method, Prediction, RecordIds, StepResult
from delta.methods.records import checked_labels, checked_records
from delta.methods.schema import CloudHalf, Operation
from delta.methods.stepping import Stepper, StepPlan
from delta.models.runtime import Runner
from delta.transport.base import Transport

__all__ = ["LocalMethod", "NoCloud"]


class NoCloud:
    """The cloud half of a method that has none: it offers nothing."""

    def __init__(self) -> None:
        self.operations: dict[str, Operation] = {}


class LocalMethod(Method):
    """One module, all private.

    Args:
        bundle: whose private weights are the module's.
        allow: import targets that the bundle may build here.
        plan: of `train_step`.
        device: where the module computes.
        runtime: how it infers; see `delta.models.runtime`. It trains as it is, whatever the runtime.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        allow: Collection[str] = (),
        plan: StepPlan | None = None,
        device: torch.device | str = "cpu",
        runtime: str = "eager",
    ) -> None:
        self._bundle = bundle
        self._device = torch.device(device)
        self._module = self._load(bundle, allow).to(self._device)
        blank = torch.zeros(1, *bundle.manifest.input.shape, device=self._device)
        self._runner = Runner(self._module, runtime, example=blank)
        self._plan = plan or StepPlan()
        self._stepper: Stepper | None = None
        self._deadline_s = 10.0

    @classmethod
    @abstractmethod
    def _load(cls, bundle: Bundle, allow: Collection[str]) -> nn.Module:
        """The module with its weights, in eval mode."""

    @classmethod
    def cloud_half(
        cls, part: CloudPart, *, device: torch.device, allowed: frozenset[str] = frozenset()
    ) -> CloudHalf:
        """A half without operations."""
        return NoCloud()

    @classmethod
    def from_bundle(cls, bundle: Bundle, **options: Any) -> Self:  # noqa: ANN401
        """Build the private half; options are `allow`, `plan`, `device` and `runtime`."""
        return cls(bundle, **options)

    def prepare(self, transport: Transport | None, *, deadline_s: float = 10.0) -> None:
        """Nothing is sent, whatever the transport."""
        self._deadline_s = deadline_s

    def infer(self, x: Tensor, ids: RecordIds | None = None) -> Prediction:
        """Run the module."""
        x = checked_records(x, self._bundle.manifest.input.shape)
        call = Call(None, deadline_s=self._deadline_s)
        logits = self._runner(x.to(self._device)).cpu()
        cost = call.cost(self._bundle.facts)
        return Prediction(logits.clone(), cost, used_cloud=False, reason="no-cloud")

    def train_step(self, x: Tensor, y: Tensor, ids: RecordIds | None = None) -> StepResult:
        """One step of AdamW on the whole module."""
        manifest = self._bundle.manifest
        x = checked_records(x, manifest.input.shape)
        y = checked_labels(y, records=len(x), classes=len(manifest.class_names))
        if self._stepper is None:
            self._module.requires_grad_(True)
            self._stepper = Stepper(self._module, self._plan)
        self._runner.renew()
        call = Call(None, deadline_s=self._deadline_s)
        loss = self._stepper.step(x.to(self._device), y.to(self._device))
        return StepResult(loss, call.cost(self._bundle.facts))

    def trained(self) -> Bundle:
        """The bundle with the module's weights as they are now."""
        private = {name: t.detach().cpu().clone() for name, t in self._module.state_dict().items()}
        facts = self._bundle.facts.model_copy(update={"weights_hash": weights_hash(private)})
        return Bundle(self._bundle.manifest, facts, private, {}, made_here=True)
