"""What a benchmark times on the private side: an inference, or one training step, of one contender."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from delta.bench.zero_method import ZeroMethod
from delta.bundle.manifest import Manifest
from delta.bundle.store import Bundle
from delta.decomposition.basis import synthetic_images
from delta.errors import CloudError
from delta.methods.base import COST_FIELDS, Cost, Method
from delta.methods.delta.parts import PrivateParts, load_private_parts
from delta.methods.registry import method_class
from delta.methods.schema import PREDICT
from delta.methods.stepping import Stepper, StepPlan
from delta.models.macs import count_macs
from delta.models.runtime import Runtime
from delta.release.config import ReleaseConfig
from delta.release.noise import NoiseKey
from delta.release.releaser import Releaser
from delta.training.cloud import TrainingCloud, UploadChunk
from delta.training.config import FitConfig, TrainConfig
from delta.training.interactive import MergedMain
from delta.training.private_stage import MainPath
from delta.training.spec import DatasetSpec, JobSpec
from delta.transport.base import Transport

__all__ = ["INFER", "ROUND_TRIP", "RUNTIME_METHODS", "TRAIN", "UPLOAD", "Case", "Sample", "cases_of"]

INFER, TRAIN, ROUND_TRIP = "infer", "train", "round trip"
STAGE_1, UPLOAD, INTERACTIVE = "train stage 1", "release and upload", "train interactive"
_DEADLINE_S = 60.0
_UPLOAD_BATCHES = 4
RUNTIME_METHODS = ("private-only", "main-only", "delta")
"""Methods whose private model can run in a faster way, all in the same: the ratios stay fair."""
_MANY = 10_000  # steps that no benchmark takes

Connect = Callable[[Manifest], Transport]
"""Opens a session with the cloud that serves a bundle."""

Sample = dict[str, Any]
"""One measurement: `ms`, the fields of `Cost`, none where nothing was measured, and what the method reports beside."""


class Case(ABC):
    """One phase of one contender.

    Args:
        phase: its name in a row.
        bundle: of the contender.
        x: records `[batch, …]`.
        y: labels `[batch]`.
    """

    def __init__(self, phase: str, bundle: Bundle, x: Tensor, y: Tensor) -> None:
        self.phase, self.bundle, self.x, self.y = phase, bundle, x, y

    @abstractmethod
    def run(self) -> Sample:
        """Do it once."""

    def close(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of the cloud."""

    def _sample(self, ms: float, cost: Cost, **more: Any) -> Sample:  # noqa: ANN401
        return {"ms": ms, **cost.to_json(), **more}

    def _own(self, ms: float, *, private_ms: float, **known: float) -> Sample:
        """A sample of what no method reports: fields that nobody measured are none (I8)."""
        facts = self.bundle.facts
        fields: dict[str, Any] = dict.fromkeys(COST_FIELDS)
        fields |= {"private_ms": private_ms, "wall_ms": ms, "private_macs": facts.private_macs, **known}
        return {"ms": ms, **fields}


class InferCase(Case):
    """`infer` of a batch."""

    def __init__(
        self, bundle: Bundle, x: Tensor, y: Tensor, *, method: Method, transport: Transport | None
    ) -> None:
        super().__init__(INFER, bundle, x, y)
        self._method, self._transport = method, transport
        method.prepare(transport, deadline_s=_DEADLINE_S)

    def run(self) -> Sample:
        """Infer.

        Raises:
            CloudError: the method did without its cloud: its time would be another thing's.
        """
        # Fresh content each time, as a service sees it: a memo of the same records would answer for free.
        x = self.x + torch.rand(()) * 1e-3
        started = time.perf_counter()
        prediction = self._method.infer(x)
        ms = 1e3 * (time.perf_counter() - started)
        if self._method.facts.offloads and not prediction.used_cloud:
            name = self._method.facts.name
            raise CloudError(
                f"method {name!r} did without its cloud ({prediction.reason}): {prediction.detail}"
            )
        extras: dict[str, float] = {
            key: value for key, value in prediction.extras.items() if isinstance(value, (int, float))
        }
        if self._transport is not None:  # once a session: in no call's bytes
            keys = getattr(self._method, "setup_bytes", (0, 0))
            sides = zip(
                ("setup_bytes_up", "setup_bytes_down"), self._transport.handshake_bytes, keys, strict=True
            )
            extras |= {name: handshake + key for name, handshake, key in sides}
        ms -= extras.get(
            "precompute_ms", 0.0
        )  # it could have been done beforehand, and has a figure of its own
        timeline = prediction.extras.get("timeline")
        return self._sample(ms, prediction.cost, extras=extras, timeline=timeline)

    def close(self) -> None:
        """Close the session."""
        if self._transport is not None:
            self._transport.close()


class RoundTripCase(Case):
    """A batch's bits there and back, to a cloud model that costs nothing: what Delta pays for the way alone."""

    def __init__(self, bundle: Bundle, x: Tensor, y: Tensor, *, transport: Transport) -> None:
        super().__init__(ROUND_TRIP, bundle, x, y)
        self._transport = transport
        self._bits = torch.zeros(len(x), bundle.manifest.settings["payload_bytes"], dtype=torch.uint8)

    def run(self) -> Sample:
        """Ask, and wait."""
        started = time.perf_counter()
        answer = self._transport.submit(PREDICT, {"bits": self._bits}, deadline_s=_DEADLINE_S).result()
        ms = 1e3 * (time.perf_counter() - started)
        known = {"bytes_up": answer.bytes_up, "bytes_down": answer.bytes_down, "round_trips": 1}
        return self._own(ms, private_ms=0.0, cloud_ms=answer.cloud_ms, cloud_macs=0, **known)

    def close(self) -> None:
        """Close the session."""
        self._transport.close()


class StepCase(Case):
    """`train_step` of a batch."""

    def __init__(
        self, bundle: Bundle, x: Tensor, y: Tensor, *, method: Method, transport: Transport | None
    ) -> None:
        super().__init__(TRAIN, bundle, x, y)
        self._method, self._transport = method, transport
        method.prepare(transport, deadline_s=_DEADLINE_S)

    def run(self) -> Sample:
        """Take a step."""
        x = self.x + torch.rand(()) * 1e-3
        started = time.perf_counter()
        step = self._method.train_step(x, self.y)
        return self._sample(1e3 * (time.perf_counter() - started), step.cost)

    def close(self) -> None:
        """Close the session."""
        if self._transport is not None:
            self._transport.close()


class StageOneCase(Case):
    """Stage 1 of Delta: backbone, decomposition and main model as one, on the private side's own loss."""

    def __init__(self, bundle: Bundle, x: Tensor, y: Tensor, *, parts: PrivateParts) -> None:
        super().__init__(STAGE_1, bundle, x, y)
        path = MainPath(parts.backbone, parts.decomposer, parts.main.requires_grad_(True))
        self._macs = count_macs(path, x[:1])
        self._stepper = Stepper(path, StepPlan())

    def run(self) -> Sample:
        """Take a step."""
        started = time.perf_counter()
        self._stepper.step(self.x, self.y)
        ms = 1e3 * (time.perf_counter() - started)
        nothing = dict.fromkeys(("cloud_ms", "cloud_macs", "bytes_up", "bytes_down", "round_trips"), 0)
        return self._own(ms, private_ms=ms, **{**nothing, "private_macs": self._macs})


class UploadCase(Case):
    """One-shot stage 2: what a batch costs the private side, which releases it once and uploads it.

    No step: the private side trains nothing in this stage, and the cloud trains by itself.
    """

    def __init__(
        self, bundle: Bundle, x: Tensor, y: Tensor, *, parts: PrivateParts, cloud: TrainingCloud
    ) -> None:
        super().__init__(UPLOAD, bundle, x, y)
        self._cloud, self._releaser = cloud, _releaser(bundle, parts)
        self._dataset = DatasetSpec(
            release=_release(bundle),
            classes=len(bundle.manifest.class_names),
            records=_UPLOAD_BATCHES * len(x),
        )
        main = count_macs(parts.main, torch.zeros(1, *parts.decomposer.main_shape))
        self._macs = bundle.facts.private_macs - main

    def run(self) -> Sample:
        """Upload a data set of some batches; figures are of one."""
        name, private = secrets.token_hex(16), [0.0]
        self._cloud.create(name, self._dataset)
        up, down = self._cloud.bytes_up, self._cloud.bytes_down
        started = time.perf_counter()
        self._cloud.upload(name, self._chunks(private))
        ms = 1e3 * (time.perf_counter() - started) / _UPLOAD_BATCHES
        up, down = self._cloud.bytes_up - up, self._cloud.bytes_down - down
        self._cloud.delete(name)
        return self._own(
            ms,
            private_ms=1e3 * private[0] / _UPLOAD_BATCHES,
            bytes_up=up / _UPLOAD_BATCHES,
            bytes_down=down / _UPLOAD_BATCHES,
            private_macs=self._macs,
        )

    def _chunks(self, private: list[float]) -> Iterator[UploadChunk]:
        for index in range(_UPLOAD_BATCHES):
            started = time.perf_counter()
            bits = self._releaser.release(self.x + torch.rand(()) * 1e-3, None).payload
            private[0] += time.perf_counter() - started
            yield UploadChunk(index * len(self.x), bits, self.y, torch.zeros(len(self.x), dtype=torch.bool))


class InteractiveCase(Case):
    """Interactive stage 2: a batch's stored bits up, its logits down, a step of the main model on the merged loss.

    Bits are released once a record, whatever the epochs: what that takes is the upload's row.
    """

    def __init__(
        self, bundle: Bundle, x: Tensor, y: Tensor, *, parts: PrivateParts, cloud: TrainingCloud
    ) -> None:
        super().__init__(INTERACTIVE, bundle, x, y)
        manifest, release = bundle.manifest, _release(bundle)
        fit = FitConfig(epochs=1, batch=len(x))
        config = TrainConfig(noise="none", whole=None, cloud_fit=fit, mode="interactive")
        self._bits = _releaser(bundle, parts).release(x, None).payload
        self._main = MergedMain(parts, config, steps=_MANY, device=torch.device("cpu"))
        self._cloud, self._dataset = cloud, secrets.token_hex(16)
        spec = DatasetSpec(release=release, classes=len(manifest.class_names), records=len(x))
        job = JobSpec(architecture=manifest.architecture, fit=fit, steps=_MANY)
        cloud.create(self._dataset, spec)
        self._stack = ExitStack()
        self._session = self._stack.enter_context(cloud.interact(self._dataset, secrets.token_hex(16), job))

    def run(self) -> Sample:
        """Exchange, and take a step."""
        up, down = self._cloud.bytes_up, self._cloud.bytes_down
        started = time.perf_counter()
        logits = self._session.exchange(self._bits, self.y, update=True)
        answered = time.perf_counter()
        self._main.step(self.x, self.y, logits)
        ended = time.perf_counter()
        return self._own(
            1e3 * (ended - started),
            private_ms=1e3 * (ended - answered),
            bytes_up=self._cloud.bytes_up - up,
            bytes_down=self._cloud.bytes_down - down,
            round_trips=1,
            cloud_macs=self.bundle.facts.cloud_macs,
        )

    def close(self) -> None:
        """End the training and delete its data set."""
        self._stack.close()
        self._cloud.delete(self._dataset)


def cases_of(
    bundle: Bundle,
    *,
    batch: int,
    seed: int,
    connect: Connect,
    training: Callable[[], TrainingCloud] | None,
    train: bool,
    runtime: Runtime = "eager",
) -> Iterator[Callable[[], Case]]:
    """What there is to time of one contender, each opened when its turn comes.

    Args:
        bundle: trained or not.
        batch: records a call.
        seed: of the records.
        connect: opens a session.
        training: the cloud that trains; none: what needs it is left out.
        train: whether training steps are timed, too.
        runtime: of the private models that have a choice.
    """
    manifest = bundle.manifest
    generator = torch.Generator().manual_seed(seed)
    x = synthetic_images(
        batch, manifest.input.shape, seed=seed
    )  # a rank that adapts needs the spectrum of images
    y = torch.randint(0, len(manifest.class_names), (batch,), generator=generator)
    kind = method_class(manifest.method)
    trusted = {manifest.architecture.target}  # the one who benchmarks has made the bundles

    def method() -> Method:
        options: dict[str, Any] = {"allow": trusted}
        if manifest.method in RUNTIME_METHODS:
            options["runtime"] = runtime
        if kind.facts.releases:
            options["key"] = NoiseKey.generate()
        return kind.from_bundle(bundle, **options)

    def session() -> Transport | None:
        return connect(manifest) if kind.facts.offloads else None

    def parts() -> PrivateParts:
        return load_private_parts(bundle, allowed=trusted)

    if manifest.method == ZeroMethod.facts.name:
        yield lambda: RoundTripCase(bundle, x, y, transport=connect(manifest))
        return
    yield lambda: InferCase(bundle, x, y, method=method(), transport=session())
    if train and kind.facts.trains:
        yield lambda: StepCase(bundle, x, y, method=method(), transport=session())
    if train and manifest.method == "delta":
        yield lambda: StageOneCase(bundle, x, y, parts=parts())
        if training is not None:
            cloud = training()
            yield lambda: UploadCase(bundle, x, y, parts=parts(), cloud=cloud)
            yield lambda: InteractiveCase(bundle, x, y, parts=parts(), cloud=cloud)


def _release(bundle: Bundle) -> ReleaseConfig:
    release = bundle.manifest.release
    if release is None:  # a bundle of Delta always has one; its loading has seen to that
        raise CloudError("the bundle has no release configuration")
    return release


def _releaser(bundle: Bundle, parts: PrivateParts) -> Releaser:
    return Releaser(
        _release(bundle),
        backbone=parts.backbone,
        decomposer=parts.decomposer,
        message=parts.message,
        key=NoiseKey.generate(),
        memo=None,
    )
