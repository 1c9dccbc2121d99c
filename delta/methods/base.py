"""The Method contract: one way to run a whole model, as a private half and a cloud half."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from delta.errors import MethodError, TrainingUnsupportedError
from delta.release.ids import RecordIds

if TYPE_CHECKING:
    from delta.bundle.manifest import Manifest
    from delta.bundle.store import Bundle, CloudPart
    from delta.methods.schema import CloudHalf
    from delta.methods.whole import WholeModel
    from delta.transport.base import Transport

__all__ = ["Cost", "Method", "MethodFacts", "Prediction", "RecordIds", "StepResult"]

Protected = Literal["query input", "query label", "training data", "weights", "integrity"]
Foundation = Literal["nothing", "TEE", "local DP", "central DP", "one-time pad", "lattice"]


@dataclass(frozen=True)
class MethodFacts:
    """What a method says of itself: the first columns of every comparison.

    Attributes:
        name: registry name.
        summary: one line.
        keeps: the invariants among I1, I2, I3 that the method keeps; the contract suite checks them.
        protects: what it keeps from the cloud.
        rests_on: what that protection rests on.
        trains: whether `train_step` works.
        offloads: whether there is a cloud half; a method without one never sends anything.
        falls_back: whether the private side answers alone where the cloud does not; else `infer` raises
            `CloudError` then.
        releases: whether records leave through keyed noise: the private half then takes `key`, a `NoiseKey`, and
            `ledger`, which is debited before anything is sent.
    """

    name: str
    summary: str
    keeps: frozenset[str]
    protects: tuple[Protected, ...]
    rests_on: tuple[Foundation, ...]
    trains: bool
    offloads: bool = True
    falls_back: bool = True
    releases: bool = False


@dataclass(frozen=True)
class Cost:
    """What one call cost. Times in milliseconds, sizes in bytes of serialised messages, MACs a record.

    `private_ms` is the private side's own computing, `cloud_ms` the cloud's as it reports it, `wall_ms` from
    call to answer; `peak_private_mib` is the peak of live private tensors in MiB, as counted by
    `delta.models.memory` for one record of the bundle's input shape.
    """

    private_ms: float
    cloud_ms: float
    wall_ms: float
    bytes_up: int
    bytes_down: int
    round_trips: int
    private_macs: int
    cloud_macs: int
    peak_private_mib: float

    def to_json(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)


COST_FIELDS = tuple(f.name for f in fields(Cost))


@dataclass(frozen=True)
class Prediction:
    """Logits of a batch and how they came about.

    Attributes:
        logits: `[n, classes]` float32, on the private side.
        cost: what the call cost.
        used_cloud: whether the cloud's answer went in.
        reason: why not, in one word (`unreachable`, `deadline`, `overloaded`, `mismatch`, `bad-answer`,
            `budget`, `refused`, `no-cloud`); empty otherwise. It stays on the private side.
        detail: the reason in one line, for the owner only.
    """

    logits: Tensor
    cost: Cost
    used_cloud: bool
    reason: str = ""
    detail: str = ""
    extras: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepResult:
    """One training step: mean loss over the batch, and its cost."""

    loss: float
    cost: Cost


class Method(ABC):
    """The private half of a method; its cloud half comes from `cloud_half`.

    Contract (tests/contract/test_methods.py runs it over every registered method): logits have shape
    `[n, classes]`; the same seed, key and records give the same answer; every field of `Cost` is set and
    non-negative; an absent, late or hostile cloud gives a result with a reason or a `CloudError`, never a
    crash; a method that cannot train says why.
    """

    facts: ClassVar[MethodFacts]

    @classmethod
    def bundle_of(cls, model: WholeModel, **settings: Any) -> Bundle:  # noqa: ANN401
        """A bundle that runs a whole model under this method; `settings` are the method's own.

        Raises:
            MethodError: the method's bundles are not made from a whole model alone.
            ModelError: the model has a part that the method cannot run; the text names it.
            ConfigError: a setting is wrong.
        """
        raise MethodError(f"a bundle of method {cls.facts.name!r} is trained, by `delta train`")

    @classmethod
    def claim(cls, manifest: Manifest) -> str:
        """What may be claimed of a bundle's privacy, in one line that begins with `none` where nothing may."""
        facts = cls.facts
        if not facts.protects:
            return "none: the cloud sees every record"
        if facts.rests_on == ("nothing",):
            return "none: empirical obfuscation"
        grounds = ["TEE (simulated)" if ground == "TEE" else ground for ground in facts.rests_on]
        return f"protection rests on {', '.join(grounds)}; it has no ε"

    @classmethod
    @abstractmethod
    def cloud_half(
        cls, part: CloudPart, *, device: torch.device, allowed: frozenset[str] = frozenset()
    ) -> CloudHalf:
        """Build the cloud half from the exported part of a bundle.

        Args:
            part: manifest and cloud weights.
            device: where the weights live. Operations get CPU tensors, move them there themselves and may
                return tensors on any device.
            allowed: import targets `package.module:callable` outside `delta.models` that the server's operator
                lets a manifest name (I5).

        Raises:
            BundleError: the manifest names a target that is not allowed, or does not fit the weights.
        """

    @classmethod
    @abstractmethod
    def from_bundle(cls, bundle: Bundle, **options: Any) -> Method:  # noqa: ANN401
        """Build the private half from a whole bundle; `options` are the method's own."""

    @abstractmethod
    def prepare(self, transport: Transport | None, *, deadline_s: float = 10.0) -> None:
        """Attach a session (none: no cloud) and do whatever is done once before the first record."""

    @abstractmethod
    def infer(self, x: Tensor, ids: RecordIds | None = None) -> Prediction:
        """Run the model on preprocessed records `[n, channels, height, width]`.

        Raises:
            InputError: the records are not of the declared shape, or not finite.
        """

    def train_step(self, x: Tensor, y: Tensor, ids: RecordIds | None = None) -> StepResult:
        """One training step on records `[n, channels, height, width]` and labels `[n]`.

        Raises:
            TrainingUnsupportedError: the method does not train; the text says why.
            CloudError: a step needs the cloud, and it failed; nothing was updated on this side.
        """
        raise TrainingUnsupportedError(f"method {self.facts.name!r} has no training step")

    def trained(self) -> Bundle:
        """The bundle with the weights as `train_step` has left them.

        Raises:
            TrainingUnsupportedError: the method does not train.
            CloudError: the weights are in the cloud, and it failed.
        """
        raise TrainingUnsupportedError(f"method {self.facts.name!r} has no training step")
