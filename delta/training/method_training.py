"""Training a method by its own steps, and measuring it by its own inference, both halves in this process."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from delta.bundle.store import Bundle
from delta.methods.base import Method, RecordIds
from delta.methods.registry import method_class
from delta.methods.settings import option_names
from delta.release.noise import NoiseKey
from delta.training.batches import batch_starts
from delta.training.config import FitConfig
from delta.training.fit import Progress, quiet
from delta.training.private_stage import Labelled
from delta.transport.inprocess import InProcessTransport

__all__ = ["Measured", "both_halves", "measured", "train_by_steps"]

_DEADLINE_S = 3600.0
"""For one request: the cloud is this process, so there is nothing to give up for."""


@dataclass(frozen=True)
class Measured:
    """How a method did on test records.

    Attributes:
        accuracy: percent.
        records: how many.
        answered_alone: records that the private side answered without the cloud, of a method that has one.
    """

    accuracy: float
    records: int
    answered_alone: int


@contextmanager
def both_halves(
    bundle: Bundle,
    *,
    device: torch.device,
    allow: Collection[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Iterator[Method]:
    """A private half whose session is with a cloud half of this process: nothing leaves.

    Args:
        bundle: of any method.
        device: of the cloud half, and of a private half that takes one.
        allow: import targets that either half may build.
        options: of the private half; those that it does not name are left out.
    """
    cls = method_class(bundle.manifest.method)
    given = {"allow": tuple(allow), "device": device, **(options or {})}
    if cls.facts.releases:
        given.setdefault("key", NoiseKey.generate())
    known = option_names(cls)
    half = cls.cloud_half(bundle.cloud_part, device=device, allowed=frozenset(allow))
    with InProcessTransport(half) as transport:
        method = cls.from_bundle(bundle, **{name: value for name, value in given.items() if name in known})
        method.prepare(transport, deadline_s=_DEADLINE_S)
        yield method


@runtime_checkable
class DrawsBatches(Protocol):
    """A method whose claim depends on how batches are drawn, and that therefore draws them itself."""

    def fit(self, x: Tensor, y: Tensor, *, progress: Progress) -> object:
        """Train on all records `[n, *shape]` with labels `[n]`, as its bundle has fixed it."""


def train_by_steps(
    method: Method, data: Labelled, fit: FitConfig, *, seed: int = 0, progress: Progress = quiet
) -> None:
    """Epochs of `train_step` over shuffled batches; or the method's own `fit`, where it draws batches itself.

    Args:
        method: prepared.
        data: training records.
        fit: epochs and batch; a last batch of one record is left out (batch norm).
        seed: of the order, and of what the model draws, as dropout does; the caller's numbers stay as they were.
        progress: told after every step.

    Raises:
        TrainingUnsupportedError: the method does not train.
        ConfigError: the loss is not finite.
    """
    if isinstance(method, DrawsBatches):
        method.fit(data.x, data.y, progress=progress)
        return
    records = len(data.y)
    starts = batch_starts(records, fit)
    generator = torch.Generator().manual_seed(seed)
    total, step = fit.epochs * len(starts), 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(fit.epochs):
            order = torch.randperm(records, generator=generator)
            for start in starts:
                index = order[start : start + fit.batch]
                method.train_step(data.x[index], data.y[index], _ids(data, index))
                step += 1
                progress(f"training by the steps of {method.facts.name}", step, total)


def measured(
    method: Method, data: Labelled, *, batch: int = 64, progress: Progress = quiet, stage: str = "measuring"
) -> Measured:
    """Accuracy through `infer`, in order.

    Args:
        method: prepared.
        data: test records.
        batch: records a call.
        progress: told after every call.
        stage: the name it is told.
    """
    starts = range(0, len(data.y), batch)
    right = alone = 0
    progress(stage, 0, len(starts))
    for done, start in enumerate(starts, start=1):
        index = torch.arange(start, min(start + batch, len(data.y)))
        prediction = method.infer(data.x[index], _ids(data, index))
        right += int((prediction.logits.argmax(dim=1) == data.y[index]).sum())
        if method.facts.offloads and not prediction.used_cloud:
            alone += len(index)
        progress(stage, done, len(starts))
    return Measured(100 * right / len(data.y), len(data.y), alone)


def _ids(data: Labelled, index: Tensor) -> RecordIds:
    chosen = index.tolist()
    return RecordIds([data.ids[i] for i in chosen], [data.subjects[i] for i in chosen])
