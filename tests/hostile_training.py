"""Training clouds that note all that reaches them, and lie as they are told to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from delta.bundle.manifest import Manifest
from delta.errors import CloudUnavailableError
from delta.training.cloud import InteractiveSession, JobState, TrainingCloud, UploadChunk
from delta.training.inprocess import InProcessTrainingCloud
from delta.training.spec import DatasetSpec, JobSpec
from delta.wire.training import encode_spec


@dataclass
class Lies:
    """What a cloud answers in place of the truth, which each function is given; an honest one by default.

    Attributes:
        held_out: to a fetch of held-out logits, or in a session.
        step: to each step of a session, with its number.
        weights: to a fetch of the trained weights.
        acknowledged: how many releases are stored, given the number that are and the number of the question.
        cut_after: releases of each upload that arrive before it is cut, upload by upload.
        states: of a job, in place of training it.
    """

    held_out: Callable[[Tensor], Any] = lambda truth: truth
    step: Callable[[int, Tensor], Any] = lambda number, truth: truth
    weights: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda truth: truth
    acknowledged: Callable[[int, int], int] = lambda truth, number: truth
    cut_after: tuple[int, ...] = ()
    states: Iterable[JobState] | None = None


class HostileTrainingCloud:
    """A cloud of this process behind lies; meets `TrainingCloud`.

    Attributes:
        transcript: all that the private side said, in order and bit for bit: releases one by one.
        requires_grad: whether anything that was sent carried a gradient.
        before: called before anything is noted.
    """

    def __init__(self, lies: Lies | None = None, *, inner: TrainingCloud | None = None) -> None:
        self.transcript: list[tuple[Any, ...]] = []
        self.requires_grad = False
        self.before: Callable[[], None] = lambda: None
        self._lies = lies or Lies()
        self._inner = inner or InProcessTrainingCloud(allowed={"delta.models:resnet_small"})
        self._cuts = iter(self._lies.cut_after)
        self._asked = 0

    @property
    def releases(self) -> dict[int, tuple[Any, ...]]:
        """What was sent for each position of the upload; a position that was sent in two ways is an error."""
        found: dict[int, tuple[Any, ...]] = {}
        for op, *rest in self.transcript:
            if op == "release" and found.setdefault(rest[0], tuple(rest[1:])) != tuple(rest[1:]):
                raise ValueError(f"release {rest[0]} was sent in two ways")
        return found

    @property
    def bytes_up(self) -> int:
        return self._inner.bytes_up

    @property
    def bytes_down(self) -> int:
        return self._inner.bytes_down

    def create(self, dataset: str, spec: DatasetSpec) -> int:
        self._note("create", dataset, encode_spec(spec))
        return self._stored(self._inner.create(dataset, spec))

    def upload(self, dataset: str, chunks: Iterable[UploadChunk]) -> int:
        left = next(self._cuts, None)
        stored = 0
        for chunk in chunks:
            room = len(chunk.bits) if left is None else min(left, len(chunk.bits))
            for i in range(room):
                release = _bytes(chunk.bits[i]), int(chunk.labels[i]), bool(chunk.held_out[i])
                self._note("release", chunk.first + i, *release)
            self._see(chunk.bits, chunk.labels)
            part = UploadChunk(chunk.first, chunk.bits[:room], chunk.labels[:room], chunk.held_out[:room])
            if room:
                stored = self._inner.upload(dataset, [part])
            if left is not None:
                left -= room
                if left == 0:
                    raise CloudUnavailableError("the connection was cut")
        return self._stored(stored)

    def delete(self, dataset: str) -> None:
        self._note("delete", dataset)
        self._inner.delete(dataset)

    def start(self, dataset: str, job: str, spec: JobSpec) -> None:
        self._note("start", dataset, job, encode_spec(spec))
        self._inner.start(dataset, job, spec)

    def watch(self, dataset: str, job: str) -> Iterator[JobState]:
        self._note("watch", dataset, job)
        states = self._lies.states
        return self._inner.watch(dataset, job) if states is None else iter(states)

    def cancel(self, dataset: str, job: str) -> None:
        self._note("cancel", dataset, job)
        self._inner.cancel(dataset, job)

    def held_out_logits(self, dataset: str, job: str, *, records: int) -> Tensor:
        self._note("logits", dataset, job)
        answer: Tensor = self._lies.held_out(self._inner.held_out_logits(dataset, job, records=records))
        return answer

    def fetch(self, dataset: str, job: str, *, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._note("fetch", dataset, job)
        return self._lies.weights(self._inner.fetch(dataset, job, like=like))

    def promote(self, dataset: str, job: str, manifest: Manifest) -> None:
        self._note("promote", dataset, job, encode_spec(manifest))
        self._inner.promote(dataset, job, manifest)

    @contextmanager
    def interact(
        self, dataset: str, job: str, spec: JobSpec, *, step: int = 0
    ) -> Iterator[InteractiveSession]:
        self._note("interact", dataset, job, encode_spec(spec), step)
        with self._inner.interact(dataset, job, spec, step=step) as session:
            yield _Session(self, session, self._lies)

    def _note(self, *what: Any) -> None:
        self.before()
        self.transcript.append(what)

    def _see(self, *tensors: Tensor) -> None:
        self.requires_grad |= any(tensor.requires_grad for tensor in tensors)

    def _stored(self, truth: int) -> int:
        self._asked += 1
        return self._lies.acknowledged(truth, self._asked)


class _Session:
    def __init__(self, cloud: HostileTrainingCloud, inner: InteractiveSession, lies: Lies) -> None:
        self._cloud, self._inner, self._lies = cloud, inner, lies
        self._number = 0

    def exchange(self, bits: Tensor, labels: Tensor, *, update: bool, checkpoint: bool = False) -> Tensor:
        self._cloud._see(bits, labels)
        self._cloud._note("exchange", _bytes(bits), labels.tolist(), update, checkpoint)
        truth = self._inner.exchange(bits, labels, update=update, checkpoint=checkpoint)
        self._number += update
        answer: Tensor = self._lies.step(self._number, truth) if update else self._lies.held_out(truth)
        return answer


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
