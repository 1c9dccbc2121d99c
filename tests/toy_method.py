"""A second method, as a plug-in would bring it: neither client nor server knows of it.

Its cloud half has a typed prediction and two operations of its own: `accumulate` keeps state and runs in
order, `scale` is batchable. Some records ask for trouble, so that tests can see one request fail alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from delta.bundle.manifest import Architecture, Manifest, PrivateFacts
from delta.bundle.store import Bundle, CloudPart, weights_hash
from delta.errors import BundleError, CloudAnswerError, CloudError, InputError, RequestError
from delta.methods.base import Cost, Method, MethodFacts, Prediction, RecordIds
from delta.methods.registry import register_method
from delta.methods.schema import PREDICT, CloudHalf, Operation, TensorSpec
from delta.release.config import InputSpec
from delta.transport.base import Answer, Transport

POISON = 255
"""First byte of a record on which `predict` fails."""
NAN = 254
"""First byte of a record whose logits are NaN."""


class ToyHalf:
    """Logits are the record's first bytes times a weight: each answer names its own record."""

    def __init__(self, weight: Tensor, *, payload_bytes: int, classes: int) -> None:
        self.weight = weight
        self.classes = classes
        self.batches: list[int] = []
        self.threads: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.total = torch.zeros(classes)
        bits = TensorSpec(torch.uint8, ("n", payload_bytes))
        logits = TensorSpec(torch.float32, ("n", classes))
        vector = TensorSpec(torch.float32, (classes,))
        self.operations: Mapping[str, Operation] = {
            PREDICT: Operation({"bits": bits}, {"logits": logits}, self.predict, batchable=True),
            "accumulate": Operation({"x": vector}, {"total": vector}, self.accumulate),
            "scale": Operation(
                {"x": TensorSpec(torch.float32, ("n", "d"))},
                {"y": TensorSpec(torch.float32, ("n", "d"))},
                self.scale,
                batchable=True,
            ),
            "pause": Operation(
                {"seconds": TensorSpec(torch.float64, ())}, {"done": TensorSpec(torch.bool, ())}, self.pause
            ),
        }

    def predict(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        bits = tensors["bits"]
        self.batches.append(bits.shape[0])
        self.threads.append(threading.current_thread().name)
        self.started.set()
        self.gate.wait(30)
        if bool((bits[:, 0] == POISON).any()):
            raise ValueError(f"a defect that quotes its input: {bits[:, 0].tolist()}")
        logits = bits[:, : self.classes].to(torch.float32) * self.weight
        logits[bits[:, 0] == NAN] = torch.nan
        return {"logits": logits}

    def accumulate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.total = self.total + tensors["x"]
        return {"total": self.total}

    def scale(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"y": tensors["x"] * self.weight}

    def pause(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        time.sleep(float(tensors["seconds"]))
        return {"done": torch.tensor(True)}


@register_method
class ToyMethod(Method):
    """Sends each record's bytes, and adds up what it has seen over `accumulate`."""

    facts = MethodFacts(
        name="toy",
        summary="a plug-in of the tests",
        keeps=frozenset(),
        protects=(),
        rests_on=("nothing",),
        trains=False,
    )

    def __init__(self, bundle: Bundle) -> None:
        self.manifest = bundle.manifest
        self.transport: Transport | None = None
        self.deadline_s = 10.0

    @classmethod
    def cloud_half(
        cls, part: CloudPart, *, device: torch.device, allowed: frozenset[str] = frozenset()
    ) -> CloudHalf:
        target = part.manifest.architecture.target
        if not target.startswith("delta.models") and target not in allowed:
            raise BundleError(f"architecture {target!r} is not allowed here; the operator may --allow it")
        return ToyHalf(
            part.cloud["weight"],
            payload_bytes=part.manifest.settings["payload_bytes"],
            classes=len(part.manifest.class_names),
        )

    @classmethod
    def from_bundle(cls, bundle: Bundle, **options: Any) -> ToyMethod:
        return cls(bundle)

    def prepare(self, transport: Transport | None, *, deadline_s: float = 10.0) -> None:
        self.transport, self.deadline_s = transport, deadline_s

    def infer(self, x: Tensor, ids: RecordIds | None = None) -> Prediction:
        if x.dim() != 4 or tuple(x.shape[1:]) != self.manifest.input.shape or not len(x):
            raise InputError(f"expected records [n, *{self.manifest.input.shape}], got {list(x.shape)}")
        if x.is_complex() or x.layout != torch.strided:
            raise InputError("records must be dense and real")
        if not bool(x.isfinite().all()):
            raise InputError("a record holds NaN or infinite values")
        answers: list[Answer] = []
        sent = 0
        logits, reason, detail = torch.zeros(len(x), 4), "no-cloud", ""
        if self.transport is not None:
            request = {"bits": x.reshape(len(x), -1).to(torch.uint8)}
            try:
                for op, name in ((PREDICT, "logits"), ("accumulate", "total")):
                    sent += 1
                    future = self.transport.submit(op, request, deadline_s=self.deadline_s)
                    answers.append(future.result(timeout=self.deadline_s + 0.2))
                    value = answers[-1].tensors.get(name)
                    shape = (len(x), 4) if op == PREDICT else (4,)
                    if value is None or value.shape != shape or not bool(value.isfinite().all()):
                        raise CloudAnswerError(f"{op}: not a valid answer")
                    request = {"x": value.float().sum(0) if op == PREDICT else value}
                logits, reason = answers[0].tensors["logits"].float(), ""
            except (CloudError, RequestError, TimeoutError) as error:
                reason, detail = "unreachable", str(error)
        cloud_ms = sum(answer.cloud_ms for answer in answers if 0 <= answer.cloud_ms < 1e9)
        up, down = (sum(getattr(a, name) for a in answers) for name in ("bytes_up", "bytes_down"))
        return Prediction(
            logits, Cost(0.0, cloud_ms, 0.0, up, down, sent, 0, 0, 0.0), not reason, reason, detail
        )


def toy_bundle(
    *, name: str = "toy", payload_bytes: int = 16, weight: float = 2.0, target: str = "delta.models:toy"
) -> Bundle:
    """A bundle of the toy method with 4 classes."""
    cloud = {"weight": torch.tensor(weight)}
    manifest = Manifest.sealed(
        name=name,
        method="toy",
        input=InputSpec(shape=(1, 1, payload_bytes), mean=(0.0,), std=(1.0,)),
        class_names=("a", "b", "c", "d"),
        architecture=Architecture(target=target),
        settings={"payload_bytes": payload_bytes},
        logit_bound=10.0,
        labels="none",
        cloud_weights_hash=weights_hash(cloud),
    )
    facts = PrivateFacts.without_fusion(
        weights_hash=weights_hash({}), private_macs=0, cloud_macs=0, peak_private_bytes=0
    )
    return Bundle(manifest, facts, {}, cloud)
