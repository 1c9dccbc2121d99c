"""The training cloud without a network: data sets in memory, jobs trained when they are watched."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from delta.bundle.manifest import Manifest
from delta.bundle.store import CloudPart
from delta.config import Strict
from delta.errors import (
    CheckpointError,
    CloudAnswerError,
    CloudDeniedError,
    CloudMismatchError,
    CloudOverloadedError,
    CloudTrainingError,
    DeltaError,
    RequestError,
)
from delta.training.checkpoint import CheckpointStore, FitStore
from delta.training.cloud import JobState, UploadChunk
from delta.training.cloud_trainer import (
    InteractiveTrainer,
    held_out_logits,
    train_on_releases,
)
from delta.training.fit import Progress, quiet
from delta.training.inprocess_session import InProcessSession
from delta.training.inprocess_store import HeldDataset, HeldJob, Meter
from delta.training.spec import DatasetSpec, JobSpec
from delta.training.weights import check_weights
from delta.wire import training as wire
from delta.wire.session import PROTOCOL_VERSION
from delta.wire.status import one_line
from delta.wire.tensors import tensor_bytes, tensor_from_bytes

__all__ = ["InProcessTrainingCloud"]


class InProcessTrainingCloud:
    """A training cloud of this process, with one tenant; bytes are what the gRPC messages would weigh.

    A job is trained inside `watch`, which comes back when it has ended; `progress` is told meanwhile.

    Args:
        device: where to compute.
        allowed: import targets besides ours that a job may name.
        store: where trainings keep their checkpoints; none for nowhere.
        progress: told after every step.
        chunk_records: releases a message of an upload.

    Attributes:
        promoted: cloud parts by the name under which they would be served.
    """

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        allowed: Collection[str] = (),
        store: FitStore | None = None,
        progress: Progress = quiet,
        chunk_records: int = 1024,
    ) -> None:
        self._device = torch.device(device)
        self._allowed = frozenset(allowed)
        self._store = store
        self._progress = progress
        self._chunk_records = chunk_records
        self._datasets: dict[str, HeldDataset] = {}
        self._meter = Meter()
        self.promoted: dict[str, CloudPart] = {}

    @property
    def bytes_up(self) -> int:
        """What the messages sent so far would weigh, bytes."""
        return self._meter.up

    @property
    def bytes_down(self) -> int:
        """What the messages received so far would weigh, bytes."""
        return self._meter.down

    def close(self) -> None:
        """There is nothing to close; a cloud over gRPC has a connection."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create(self, dataset: str, spec: DatasetSpec) -> int:
        """Make a data set, or find it again; see `TrainingCloud.create`."""
        raw = wire.encode_spec(spec)
        self._meter.sent(
            wire.CreateDatasetRequest(
                protocol_version=PROTOCOL_VERSION, dataset=wire.check_name(dataset), spec=raw
            )
        )
        found = self._datasets.setdefault(dataset, HeldDataset(spec))
        _same(found.spec, spec, what="data set")
        self._meter.received(
            wire.CreateDatasetResponse(
                acknowledged=found.stored, max_records=wire.max_upload_records(spec.release.payload_bytes)
            )
        )
        return found.stored

    def upload(self, dataset: str, chunks: Iterable[UploadChunk]) -> int:
        """Store releases; see `TrainingCloud.upload`."""
        found, spec = self._found(dataset), self._found(dataset).spec
        limit = wire.max_upload_records(spec.release.payload_bytes)
        most = min(limit, wire.records_a_chunk(spec.release.payload_bytes, most=self._chunk_records))
        head = wire.UploadHead(protocol_version=PROTOCOL_VERSION, dataset=dataset)
        self._meter.sent(wire.UploadReleasesRequest(head=head))
        for chunk in wire.resized(chunks, most=most):
            message = self._meter.sent(wire.encode_chunk(chunk, classes=spec.classes))
            found.append(wire.decode_chunk(message, spec=spec, max_records=limit))
        self._meter.received(wire.UploadReleasesResponse(acknowledged=found.stored))
        return found.stored

    def delete(self, dataset: str) -> None:
        """Forget a data set with its jobs; see `TrainingCloud.delete`."""
        self._meter.sent(
            wire.DeleteDatasetRequest(protocol_version=PROTOCOL_VERSION, dataset=wire.check_name(dataset))
        )
        self._datasets.pop(dataset, None)

    def start(self, dataset: str, job: str, spec: JobSpec) -> None:
        """Queue a one-shot job; see `TrainingCloud.start`."""
        raw = wire.encode_spec(spec)
        self._meter.sent(
            wire.StartTrainingRequest(protocol_version=PROTOCOL_VERSION, name=_name(dataset, job), spec=raw)
        )
        found = self._found(dataset)
        if spec.steps is not None:
            raise RequestError(
                "a one-shot job takes no steps: its epochs decide; open it with interact instead"
            )
        if found.stored < found.spec.records:
            raise RequestError(
                f"the data set holds {found.stored} of its {found.spec.records} releases; upload the rest first"
            )
        entry = found.jobs.setdefault(job, HeldJob(spec))
        _same(entry.spec, spec, what="job")
        if entry.state.state == "failed":
            entry.state = JobState("waiting")

    def watch(self, dataset: str, job: str) -> Iterator[JobState]:
        """Train what waits, then tell its states; see `TrainingCloud.watch`."""
        self._meter.sent(
            wire.WatchTrainingRequest(protocol_version=PROTOCOL_VERSION, name=_name(dataset, job))
        )
        found, entry = self._found(dataset), self._job(dataset, job)
        if entry.spec.steps is not None and entry.state.state in ("waiting", "running"):
            raise RequestError(
                "an interactive job goes on in its session alone; watch it once that has ended"
            )
        if entry.state.state == "waiting":
            yield self._meter.told(replace(entry.state, state="running"))
            if entry.state.state == "waiting":  # not cancelled in between
                yield from map(self._meter.told, self._train(found, entry))
        yield self._meter.told(entry.state)

    def cancel(self, dataset: str, job: str) -> None:
        """Stop a job that has not ended; see `TrainingCloud.cancel`."""
        self._meter.sent(
            wire.CancelTrainingRequest(protocol_version=PROTOCOL_VERSION, name=_name(dataset, job))
        )
        entry = self._job(dataset, job)
        if entry.state.state in ("waiting", "running"):
            entry.state = replace(entry.state, state="cancelled")

    def held_out_logits(self, dataset: str, job: str, *, records: int) -> Tensor:
        """z_cloud of the held-out records; see `TrainingCloud.held_out_logits`."""
        self._meter.sent(wire.FetchLogitsRequest(protocol_version=PROTOCOL_VERSION, name=_name(dataset, job)))
        entry, classes = self._done(dataset, job), self._found(dataset).spec.classes
        for message in wire.logits_messages(entry.logits):
            self._meter.received(message)
        if len(entry.logits) != 4 * classes * records:
            raise CloudAnswerError(
                f"the job has {len(entry.logits)} bytes of held-out logits; expected {records} rows of {4 * classes}"
            )
        return tensor_from_bytes(entry.logits, torch.float32, (records, classes))

    def fetch(self, dataset: str, job: str, *, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The trained weights by name; see `TrainingCloud.fetch`."""
        self._meter.sent(
            wire.FetchCheckpointRequest(protocol_version=PROTOCOL_VERSION, name=_name(dataset, job))
        )
        entry = self._done(dataset, job)
        for message in wire.checkpoint_messages(entry.weights):
            self._meter.received(message)
        weights = load_tensors(entry.weights)
        check_weights(weights, like=like)
        return weights

    def promote(self, dataset: str, job: str, manifest: Manifest) -> None:
        """Keep the trained model under a manifest; see `TrainingCloud.promote`."""
        self._meter.sent(
            wire.PromoteCheckpointRequest(
                protocol_version=PROTOCOL_VERSION,
                name=_name(dataset, job),
                manifest=wire.encode_spec(manifest),
            )
        )
        entry, spec = self._done(dataset, job), self._found(dataset).spec
        for what, same in (
            ("cloud_weights_hash", manifest.cloud_weights_hash == hashlib.sha256(entry.weights).hexdigest()),
            ("release_hash", manifest.release_hash == spec.release.release_hash),
            ("architecture", manifest.architecture_in_cloud == entry.spec.architecture),
            ("number of classes", len(manifest.class_names) == spec.classes),
        ):
            if not same:
                raise CloudMismatchError(
                    f"the manifest's {what} is not that of the trained job; promote the job under its own"
                )
        self.promoted[manifest.name] = CloudPart(manifest, load_tensors(entry.weights))

    def interact(self, dataset: str, job: str, spec: JobSpec, *, step: int = 0) -> InProcessSession:
        """Open an interactive job; see `TrainingCloud.interact`."""
        hello = wire.InteractiveHello(
            protocol_version=PROTOCOL_VERSION,
            name=_name(dataset, job),
            spec=wire.encode_spec(spec),
            step=step,
        )
        self._meter.sent(wire.TrainInteractivelyRequest(hello=hello))
        found = self._found(dataset)
        if spec.steps is None:
            raise RequestError("an interactive job needs its number of steps, fixed beforehand")
        entry = found.jobs.setdefault(job, HeldJob(spec))
        _same(entry.spec, spec, what="job")
        if entry.open:
            raise CloudOverloadedError("a session of this job is open; close it first")
        ended = entry.state.state == "done" and step == spec.steps  # held-out records may still be asked for
        if entry.state.state not in ("waiting", "running") and not ended:
            raise RequestError(f"the job is {entry.state.state}; choose another name for a new one")
        try:
            trainer = InteractiveTrainer(
                found.spec,
                spec,
                device=self._device,
                allowed=self._allowed,
                checkpoints=self._checkpoints("interactive", found, entry, f"{dataset}/{job}"),
                step=step,
            )
        except CheckpointError as error:
            raise CloudMismatchError(str(error)) from None
        except DeltaError as error:
            raise CloudTrainingError(str(error)) from None
        self._meter.received(wire.TrainInteractivelyResponse(ready=True))
        return InProcessSession(trainer, found.spec, entry, self._meter)

    def _train(self, found: HeldDataset, entry: HeldJob) -> list[JobState]:
        """Run a job to its end; the states on the way."""
        states: list[JobState] = []
        releases = found.releases
        digest = hashlib.sha256()
        for tensor in (releases.bits, releases.labels, releases.held_out):
            digest.update(tensor_bytes(tensor))
        try:
            model = train_on_releases(
                found.spec,
                entry.spec,
                releases,
                device=self._device,
                allowed=self._allowed,
                checkpoints=self._checkpoints("cloud", found, entry, digest.hexdigest()),
                progress=self._progress,
                report=lambda step, steps, loss: states.append(JobState("running", step, steps, loss)),
            )
            logits = held_out_logits(model, releases, device=self._device)
            entry.keep(model, logits=logits)
        except DeltaError as error:
            entry.state = JobState("failed", message=one_line(str(error)))
            return states
        entry.state = replace(states[-1] if states else JobState("done"), state="done")
        return states

    def _checkpoints(
        self, name: str, found: HeldDataset, entry: HeldJob, data: str
    ) -> CheckpointStore | None:
        if self._store is None:
            return None
        specs = {"dataset": found.spec.model_dump(mode="json"), "job": entry.spec.model_dump(mode="json")}
        return self._store.of(name, {**specs, "data": data})

    def _found(self, dataset: str) -> HeldDataset:
        found = self._datasets.get(wire.check_name(dataset))
        if found is None:
            raise CloudDeniedError("no data set of that name is this tenant's; create it first")
        return found

    def _job(self, dataset: str, job: str) -> HeldJob:
        entry = self._found(dataset).jobs.get(job)
        if entry is None:
            raise CloudDeniedError("no job of that name is this tenant's; start it first")
        return entry

    def _done(self, dataset: str, job: str) -> HeldJob:
        entry = self._job(dataset, job)
        if entry.state.state != "done":
            raise RequestError(f"the job is {entry.state.state}, not done; watch it to its end first")
        return entry


def _name(dataset: str, job: str) -> wire.JobName:
    return wire.JobName(dataset=wire.check_name(dataset), job=wire.check_name(job))


def _same(held: Strict, given: Strict, *, what: str) -> None:
    if held != given:
        raise CloudMismatchError(
            f"a {what} of that name exists with another specification; choose another name, or delete it first"
        )
