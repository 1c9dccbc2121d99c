"""Delta's private half: release first, main model while the cloud works, then fuse or fall back."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future
from typing import Any, ClassVar

import torch
from torch import Tensor

from delta.bundle.store import Bundle, CloudPart
from delta.errors import (
    BudgetExceededError,
    BundleError,
    TrainingUnsupportedError,
)
from delta.methods.base import Cost, Method, MethodFacts, Prediction, StepResult
from delta.methods.delta.asking import Outcome, ask, outcome_of
from delta.methods.delta.cloud import DeltaCloud, load_cloud_model
from delta.methods.delta.fusion import certified_fraction, fuse
from delta.methods.delta.parts import load_private_parts
from delta.methods.delta.timeline import Timeline
from delta.methods.failures import reason_of
from delta.methods.records import dense_records
from delta.methods.registry import register_method
from delta.methods.schema import CloudHalf
from delta.models.runtime import Runner
from delta.privacy.ledger import InMemoryLedger, Ledger
from delta.release.ids import RecordIds
from delta.release.memo import InMemoryMemo, ReleaseMemo
from delta.release.noise import NoiseKey
from delta.release.releaser import Released, Releaser
from delta.transport.base import Answer, Transport

__all__ = ["DeltaMethod"]


@register_method
class DeltaMethod(Method):
    """The private half of one bundle."""

    facts: ClassVar[MethodFacts] = MethodFacts(
        name="delta",
        summary="principal part private, clipped, noised one-bit residuals in the cloud",
        keeps=frozenset({"I1", "I2", "I3"}),
        protects=("query input",),
        rests_on=("local DP",),
        trains=False,
        releases=True,
    )

    def __init__(
        self,
        bundle: Bundle,
        *,
        key: NoiseKey | None = None,
        memo: ReleaseMemo | None = None,
        ledger: Ledger | None = None,
        allow: Collection[str] = (),
        runtime: str = "eager",
    ) -> None:
        own = {bundle.manifest.architecture.target} if bundle.made_here else set()
        parts = load_private_parts(bundle, allowed=own | set(allow))
        manifest = bundle.manifest
        if manifest.release is None:
            raise BundleError(
                "method 'delta' needs a release configuration in the manifest; train the bundle again"
            )
        self._bundle = bundle
        # The main model alone: what stands before a release must round as it always did.
        self._main = Runner(parts.main, runtime, example=torch.zeros(1, *parts.decomposer.main_shape))
        self._input = manifest.input
        self._classes = len(manifest.class_names)
        self._releaser = Releaser(
            manifest.release,
            backbone=parts.backbone,
            decomposer=parts.decomposer,
            message=parts.message,
            key=key,
            memo=memo if memo is not None else InMemoryMemo(),
        )
        self._ledger: Ledger = ledger if ledger is not None else InMemoryLedger(budget="unlimited")
        self._alpha, self._bound = bundle.facts.alpha, manifest.logit_bound
        self._transport: Transport | None = None
        self._deadline_s = 10.0

    @classmethod
    def cloud_half(
        cls, part: CloudPart, *, device: torch.device, allowed: frozenset[str] = frozenset()
    ) -> CloudHalf:
        """Build the cloud model that the manifest declares."""
        model = load_cloud_model(part, allowed=allowed)
        release = part.manifest.release
        size = release.payload_bytes if release else 0
        return DeltaCloud(model, payload_bytes=size, classes=len(part.manifest.class_names), device=device)

    @classmethod
    def from_bundle(cls, bundle: Bundle, **options: Any) -> DeltaMethod:  # noqa: ANN401
        """Build the private half.

        Options are `key`, `memo`, `ledger`, `allow` (import targets) and `runtime` (of the main model; see
        `delta.models.runtime`).
        """
        return cls(bundle, **options)

    @property
    def ledger(self) -> Ledger:
        """What has been released so far, and what it cost."""
        return self._ledger

    def prepare(self, transport: Transport | None, *, deadline_s: float = 10.0) -> None:
        """Attach a session; nothing is sent before the first record."""
        self._transport = transport
        self._deadline_s = deadline_s

    def infer(self, x: Tensor, ids: RecordIds | None = None) -> Prediction:
        """Release, compute z_main while the cloud works, fuse; fall back to z_main with the reason.

        Whether and what is sent depends on the records, their ids, the ledger and whether there is a
        transport: never on a logit (I1).
        """
        x = dense_records(x, self._input.shape)
        timeline = Timeline()
        released = self._releaser.release(x, ids)
        own_s = timeline.mark("backbone, decomposition and release")
        requests, refusal = self._send(released)
        timeline.sent(requests)
        own_s += timeline.mark("send")
        z_main = self._main(released.main_input)
        own_s += timeline.mark("main model")

        outcome = outcome_of(requests, records=len(x), classes=self._classes, deadline_s=self._deadline_s)
        z_cloud, failure = outcome.logits, refusal or outcome.failure
        waited_s = timeline.mark("wait")
        logits = z_main if z_cloud is None else fuse(z_main, z_cloud, alpha=self._alpha, bound=self._bound)
        own_s += timeline.mark("fuse")
        cost = self._cost(outcome, sent=bool(requests), own_s=own_s, wall_s=own_s + waited_s)
        return Prediction(
            logits=logits,
            cost=cost,
            used_cloud=z_cloud is not None,
            reason="" if z_cloud is not None else reason_of(failure),
            detail="" if failure is None else str(failure),
            extras={
                "z_main": z_main,
                "z_cloud": z_cloud,
                "payload": released.payload,
                "timeline": [vars(event) for event in timeline.events()],
                "certified": certified_fraction(z_main, alpha=self._alpha, bound=self._bound),
            },
        )

    def train_step(self, x: Tensor, y: Tensor, ids: RecordIds | None = None) -> StepResult:
        """Not offered: see the error."""
        raise TrainingUnsupportedError(
            "method 'delta' is trained by `delta.train` in two stages: its releases are stored once, "
            "so the cloud model needs no step with the private side"
        )

    def _send(self, released: Released) -> tuple[list[Future[Answer]], Exception | None]:
        """Debit, then send: a crash in between over-counts, which is the safe side."""
        if self._transport is None:
            return [], None
        try:
            self._ledger.debit(released.debits)
        except BudgetExceededError as error:
            return [], error
        return ask(self._transport, released.payload, deadline_s=self._deadline_s), None

    def _cost(self, outcome: Outcome, *, sent: bool, own_s: float, wall_s: float) -> Cost:
        facts = self._bundle.facts
        return Cost(
            private_ms=1e3 * own_s,
            cloud_ms=outcome.cloud_ms,
            wall_ms=1e3 * wall_s,
            bytes_up=outcome.bytes_up,
            bytes_down=outcome.bytes_down,
            round_trips=int(sent),
            private_macs=facts.private_macs,
            cloud_macs=facts.cloud_macs,
            peak_private_mib=facts.peak_private_bytes / 2**20,
        )
