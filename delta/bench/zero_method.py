"""A plug-in method whose cloud model costs nothing: what is left is the cost of the way there and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from delta.bundle.manifest import Architecture, Manifest, PrivateFacts
from delta.bundle.store import Bundle, CloudPart, weights_hash
from delta.errors import MethodError
from delta.methods.base import Method, MethodFacts, Prediction, RecordIds
from delta.methods.registry import register_method
from delta.methods.schema import PREDICT, CloudHalf, Operation, TensorSpec
from delta.release.config import InputSpec
from delta.transport.base import Transport

__all__ = ["ZeroHalf", "ZeroMethod", "zero_bundle"]


class ZeroHalf:
    """Answers zeros.

    Args:
        payload_bytes: packed bytes a record.
        classes: logits a record.
    """

    def __init__(self, *, payload_bytes: int, classes: int) -> None:
        self._classes = classes
        self.operations: Mapping[str, Operation] = {
            PREDICT: Operation(
                {"bits": TensorSpec(torch.uint8, ("n", payload_bytes))},
                {"logits": TensorSpec(torch.float32, ("n", classes))},
                self._predict,
                batchable=True,
            )
        }

    def _predict(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": torch.zeros(tensors["bits"].shape[0], self._classes)}


@register_method
class ZeroMethod(Method):
    """Only a cloud half: the benchmark speaks to the transport itself."""

    facts = MethodFacts(
        name="bench-zero",
        summary="a cloud model that costs nothing, to measure the transport",
        keeps=frozenset(),
        protects=(),
        rests_on=("nothing",),
        trains=False,
    )

    @classmethod
    def cloud_half(
        cls, part: CloudPart, *, device: torch.device, allowed: frozenset[str] = frozenset()
    ) -> CloudHalf:
        """The half that answers zeros, on any device."""
        return ZeroHalf(
            payload_bytes=part.manifest.settings["payload_bytes"], classes=len(part.manifest.class_names)
        )

    @classmethod
    def from_bundle(cls, bundle: Bundle, **options: Any) -> ZeroMethod:  # noqa: ANN401
        """There is no private half.

        Raises:
            MethodError: always.
        """
        raise MethodError("method 'bench-zero' has no private half; it measures transports")

    def prepare(self, transport: Transport | None, *, deadline_s: float = 10.0) -> None:
        """Nothing to prepare."""

    def infer(self, x: Tensor, ids: RecordIds | None = None) -> Prediction:
        """There is no private half.

        Raises:
            MethodError: always.
        """
        raise MethodError("method 'bench-zero' has no private half; it measures transports")


def zero_bundle(*, payload_bytes: int = 128, classes: int = 10, name: str = "bench-zero") -> Bundle:
    """A bundle of the method for records of `payload_bytes`."""
    cloud: dict[str, Tensor] = {}
    manifest = Manifest.sealed(
        name=name,
        method="bench-zero",
        input=InputSpec(shape=(1, 1, payload_bytes), mean=(0.0,), std=(1.0,)),
        class_names=tuple(str(number) for number in range(classes)),
        architecture=Architecture(target="delta.bench.zero_method:ZeroHalf"),
        settings={"payload_bytes": payload_bytes},
        logit_bound=1.0,
        labels="none",
        cloud_weights_hash=weights_hash(cloud),
    )
    facts = PrivateFacts.without_fusion(
        weights_hash=weights_hash({}), private_macs=0, cloud_macs=0, peak_private_bytes=0
    )
    return Bundle(manifest, facts, {}, cloud)
