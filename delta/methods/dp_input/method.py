"""Records clipped and noised on the private side; a whole model in the cloud answers what is left of them."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from torch import Tensor

from delta.bundle.manifest import Manifest
from delta.bundle.store import Bundle
from delta.errors import PrivacyParameterError
from delta.methods.base import MethodFacts, Prediction, RecordIds, StepResult
from delta.methods.dp_input.noise import InputNoise, noise_of, privacy_claim
from delta.methods.dp_input.release import RecordReleaser
from delta.methods.registry import register_method
from delta.methods.remote import RemoteMethod
from delta.methods.stepping import StepPlan
from delta.methods.whole import WholeModel, plain_bundle, refuse_meeting_records, refuse_settings
from delta.privacy.ledger import InMemoryLedger, Ledger
from delta.release.config import Bounding
from delta.release.memo import InMemoryMemo, ReleaseMemo
from delta.release.noise import NoiseKey

__all__ = ["DpInput"]

_SETTINGS = ("epsilon", "delta", "bounding", "clip_norm", "plan")
_LIVE_BYTES = 4 + 8 + 8 + 8 + 4
"""Of a value: the record, and bounded, uniform, normal and noisy one."""


@register_method
class DpInput(RemoteMethod):
    """Noisy records up, logits down.

    Args:
        bundle: of `dp-input`.
        key: the noise key.
        memo: stored releases; by default they last as long as the process, 4 bytes a value.
        ledger: debited before anything is sent; by default one without a limit, that lasts as long.
    """

    facts: ClassVar[MethodFacts] = MethodFacts(
        name="dp-input",
        summary="clipped records with Gaussian noise, and the whole model in the cloud",
        keeps=frozenset({"I1", "I2", "I3"}),
        protects=("query input",),
        rests_on=("local DP",),
        trains=True,
        falls_back=False,
        releases=True,
    )

    def __init__(
        self,
        bundle: Bundle,
        *,
        key: NoiseKey | None = None,
        memo: ReleaseMemo | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__(bundle)
        self._ledger: Ledger = ledger if ledger is not None else InMemoryLedger(budget="unlimited")
        self._releaser = RecordReleaser(
            noise_of(bundle.manifest),
            bundle.manifest.input,
            key=key,
            memo=memo if memo is not None else InMemoryMemo(),
        )

    @property
    def ledger(self) -> Ledger:
        """What has been released so far, and what it cost."""
        return self._ledger

    @classmethod
    def claim(cls, manifest: Manifest) -> str:
        """(ε, δ) and μ of one release; `privacy_claim` has the conditions too."""
        return privacy_claim(manifest).claim

    @classmethod
    def bundle_of(
        cls,
        model: WholeModel,
        *,
        epsilon: float | None = None,
        delta: float = 1e-5,
        bounding: Literal["normalise", "clip"] = "normalise",
        clip_norm: float | None = None,
        plan: StepPlan | None = None,
        **settings: Any,  # noqa: ANN401
    ) -> Bundle:
        """All weights in the cloud, and the noise that each record gets before it leaves.

        Args:
            model: the whole model.
            epsilon: of each release; there is no default.
            delta: of each release.
            bounding: `normalise` scales every record to norm C, `clip` those above it down.
            clip_norm: C, fixed without a look at private records; none takes √d for d values a record, the
                norm that standardised records have on average.
            plan: lets whoever reaches the cloud train it, on noisy records and true labels; none for a model
                that only answers.
            settings: there are no others.

        Raises:
            PrivacyParameterError: ε is missing, or a number is out of range.
            ModelError: records see each other in the model.
        """
        refuse_settings(cls.facts.name, settings, known=_SETTINGS)
        refuse_meeting_records(model, cls.facts.name)
        if epsilon is None:
            raise PrivacyParameterError(
                "method 'dp-input' has no default noise; say the epsilon of a release, such as epsilon=8"
            )
        values = model.record.numel()
        bound = {"kind": bounding, "clip_norm": math.sqrt(values) if clip_norm is None else clip_norm}
        noise = InputNoise.of(
            epsilon=epsilon, delta=delta, bounding=Bounding.parse(bound, what="method 'dp-input'")
        )
        trains = {} if plan is None else {"plan": plan.model_dump(mode="json")}
        return plain_bundle(
            model,
            cls.facts.name,
            private={},
            cloud=model.module.state_dict(),
            private_macs=2 * values,  # the norm; scale and noise
            cloud_macs=model.macs,
            peak_private_bytes=_LIVE_BYTES * values,
            settings={"noise": noise.model_dump(mode="json"), **trains},
            labels="none" if plan is None else "disclosed",
        )

    def infer(self, x: Tensor, ids: RecordIds | None = None) -> Prediction:
        """Release the records, debit, send.

        Raises:
            CloudError: there is no cloud, or it failed: the private side has no model of its own.
            BudgetExceededError: the ledger refuses, so nothing was sent; nobody can answer then.
        """
        return super().infer(x, ids)

    def train_step(self, x: Tensor, y: Tensor, ids: RecordIds | None = None) -> StepResult:
        """Release the records, debit, send them with their labels; the cloud takes the step.

        A record is released once: another epoch sends the stored values again, at no further cost. The ids keep
        it so; a view of a record (shifted, mirrored) is a release of its own.

        Raises:
            CloudError: there is no cloud, or it failed.
            BudgetExceededError: the ledger refuses, so nothing was sent.
            TrainingUnsupportedError: the bundle has no plan.
        """
        return super().train_step(x, y, ids)

    def _outbound(self, x: Tensor, ids: RecordIds | None) -> Tensor:
        """Debit, then send: a crash in between over-counts, which is the safe side."""
        released = self._releaser.release(x, ids)
        if self._transport is not None:
            self._ledger.debit(released.debits)
        return released.payload
