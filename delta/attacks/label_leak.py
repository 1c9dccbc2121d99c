"""Label leak: what the cloud's own model guesses of the labels from what it is sent."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from delta.attacks.intervals import clopper_pearson
from delta.bundle.store import Bundle
from delta.methods.registry import method_class
from delta.methods.schema import PREDICT, is_predict
from delta.methods.whole import allowed_targets
from delta.methods.whole_half import LOGITS
from delta.release.layout import pack_patches
from delta.release.packing import pack_bits

__all__ = ["LabelLeak", "label_leak"]

_BATCH = 250


@dataclass(frozen=True)
class LabelLeak:
    """How much of the answer the cloud has.

    Attributes:
        accuracy: percent of labels that the cloud's model alone gets right.
        interval: Clopper-Pearson, 95 %, percent.
        prior: percent that guessing the commonest class gets right.
        records: how many.
    """

    accuracy: float
    interval: tuple[float, float]
    prior: float
    records: int

    def to_json(self) -> dict[str, object]:
        """The figures."""
        return {
            "cloud_accuracy": self.accuracy,
            "interval": list(self.interval),
            "prior": self.prior,
            "records": self.records,
        }


def _packed(bundle: Bundle, bits: Tensor) -> Tensor:
    """Bits `[n, k, h_m, w_m]`, as a tap shows them, as the cloud gets them."""
    release = bundle.manifest.release
    patch = None if release is None else release.layout.patch
    return pack_bits(bits) if patch is None else pack_patches(bits, patch=patch)


def label_leak(
    bundle: Bundle, observed: Tensor, labels: Tensor, *, allow: Collection[str] = ()
) -> LabelLeak | None:
    """Ask the bundle's own cloud half what it makes of captured payloads.

    Args:
        bundle: the whole bundle.
        observed: one look at each record, `[n, *shape]`, as the bundle's own tap captured it.
        labels: `[n]`.
        allow: import targets that the bundle may build.

    Returns:
        None where the cloud half computes no logits of a record, as in Slalom.
    """
    half = method_class(bundle.manifest.method).cloud_half(
        bundle.cloud_part, device=observed.device, allowed=frozenset(allowed_targets(bundle, allow))
    )
    predict = half.operations.get(PREDICT)
    guesses = []
    if predict is not None and is_predict(predict):
        for part in torch.split(observed.cpu(), _BATCH):
            guesses.append(predict.run({"bits": _packed(bundle, part > 0)})["logits"].argmax(1).cpu())
    elif LOGITS in half.operations:
        for part in torch.split(observed.cpu(), _BATCH):
            guesses.append(half.operations[LOGITS].run({"x": part})["logits"].argmax(1).cpu())
    else:
        return None
    right = int((torch.cat(guesses) == labels.cpu()).sum())
    low, high = clopper_pearson(right, len(labels))
    return LabelLeak(
        accuracy=100.0 * right / len(labels),
        interval=(100.0 * low, 100.0 * high),
        prior=100.0 * int(labels.bincount().max()) / len(labels),
        records=len(labels),
    )
