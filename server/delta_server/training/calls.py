"""What each call of `TrainingService` does, as the tenant of its token may do it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from delta.bundle.manifest import Manifest
from delta.errors import CloudDeniedError, CloudMismatchError, CloudUnavailableError, RequestError
from delta.models.targets import OURS
from delta.training.spec import DatasetSpec, JobSpec
from delta.wire import training as wire
from delta.wire.session import check_version
from delta_server.config import ServerConfig
from delta_server.guard import Context
from delta_server.log import event
from delta_server.models import ModelStore
from delta_server.stream import parse
from delta_server.training.datasets import Tenant
from delta_server.training.interactive import Sessions
from delta_server.training.jobs import FINAL, Job
from delta_server.training.promoted import Promoted, check_manifest
from delta_server.training.reading import Reader
from delta_server.training.result import read_logits, read_weights
from delta_server.training.runner import Runner, begin_again, end_job
from delta_server.training.tenants import Tenants, tenant_key
from delta_server.training.uploading import receive_releases

__all__ = ["Answering", "Calls", "Reading", "Unary"]

Unary = Callable[[bytes, bytes], Awaitable[bytes]]
"""`(token, request) → answer`."""
Answering = Callable[[bytes, bytes, Context], Awaitable[None]]
"""`(token, request, context)`; answers go to the context."""
Reading = Callable[[bytes, Reader, Context], Awaitable[bytes | None]]
"""`(token, reader, context) → answer`, where there is one at the end."""

_HEARTBEAT_S = 1.0


class Calls:
    """The calls over one store.

    Args:
        config: settings.
        folder: of the store.
        models: where promoted models are served from.
        draining: set when the server stops.
        message_bytes: largest message that the server takes.

    Attributes:
        unary: calls of one message each way, by name.
        answering: calls with a stream of answers.
        reading: calls with a stream of requests.

    Raises:
        ConfigError: the store cannot be used.
    """

    def __init__(
        self,
        config: ServerConfig,
        folder: Path,
        models: ModelStore,
        *,
        draining: asyncio.Event,
        message_bytes: int,
    ) -> None:
        self._config = config
        self._draining = draining
        self._promoted = Promoted(folder / "promoted", models, config, message_bytes=message_bytes)
        self._tenants = Tenants(folder, config, self._promoted)
        self._runner, self._sessions = Runner(config, self._tenants.check_share), Sessions(config)
        self._promoted.load()
        self.unary: dict[str, Unary] = {
            "CreateDataset": self._create,
            "DeleteDataset": self._delete,
            "StartTraining": self._start,
            "CancelTraining": self._cancel,
            "PromoteCheckpoint": self._promote,
        }
        self.answering: dict[str, Answering] = {
            "WatchTraining": self._watch,
            "FetchLogits": self._fetch_logits,
            "FetchCheckpoint": self._fetch_checkpoint,
        }
        self.reading: dict[str, Reading] = {
            "UploadReleases": self._upload,
            "TrainInteractively": self._interact,
        }

    def bearer(self, token: bytes) -> str:
        """Whose share of the streams a call takes: its tenant's, or that of all who have no data set here."""
        return tenant_key(token) if self._tenants.knows(token) else ""

    def resume(self) -> None:
        """Go on with every one-shot job that was started and has not ended, the oldest first."""
        waiting = [job for job in self._tenants.jobs() if not (job.final or job.interactive)]
        for job in sorted(waiting, key=lambda job: job.folder.stat().st_mtime_ns):
            event("training resumed", job=job.folder.name[:8])
            self._runner.submit(job)

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(self._runner.close(), self._sessions.close())
        self._tenants.close()

    async def _create(self, token: bytes, raw: bytes) -> bytes:
        request: wire.CreateDatasetRequest = parse(wire.CreateDatasetRequest, raw)
        name = _checked(request.protocol_version, request.dataset)
        spec = wire.decode_spec(DatasetSpec, request.spec, what="data set")
        async with self._tenants.changing(token):
            tenant = self._tenants.make(token)
            try:
                dataset = await asyncio.to_thread(self._tenants.create, tenant, name, spec)
            finally:
                self._tenants.leave(tenant)
        event("data set", tenant=tenant.label, records=spec.records, stored=dataset.store.count)
        return wire.CreateDatasetResponse(
            acknowledged=dataset.store.count,
            max_records=wire.max_upload_records(spec.release.payload_bytes),
        ).SerializeToString()

    async def _upload(self, token: bytes, reader: Reader, context: Context) -> bytes | None:
        raw = await reader.next(idle_s=self._config.handshake_s)
        head: wire.UploadReleasesRequest = parse(wire.UploadReleasesRequest, raw or b"")
        if not head.HasField("head"):
            raise RequestError("the first message of an upload must be its head")
        name = _checked(head.head.protocol_version, head.head.dataset)
        dataset = self._tenants.dataset(token, name)
        before = dataset.store.count
        try:
            count = await receive_releases(
                reader, dataset.store, dataset.spec, idle_s=self._config.train_idle_s
            )
        finally:
            event("upload", records=dataset.store.count - before, stored=dataset.store.count)
        return wire.UploadReleasesResponse(acknowledged=count).SerializeToString()

    async def _delete(self, token: bytes, raw: bytes) -> bytes:
        request: wire.DeleteDatasetRequest = parse(wire.DeleteDatasetRequest, raw)
        name = _checked(request.protocol_version, request.dataset)
        async with self._tenants.changing(token):
            with suppress(CloudDeniedError):  # what is not there need not be deleted
                await self._remove(self._tenants.tenant(token), name)
        return wire.DeleteDatasetResponse().SerializeToString()

    async def _remove(self, tenant: Tenant, name: str) -> None:
        dataset = tenant.datasets.pop(name, None)
        if dataset is not None:
            for job in dataset.jobs.values():
                await self._stop(job)
            await asyncio.to_thread(self._tenants.remove, tenant, dataset)
            event("data set deleted", tenant=tenant.label)
        self._tenants.leave(tenant)

    async def _stop(self, job: Job) -> None:
        """Cancel a job that has not ended."""
        if not job.final:
            await end_job(job, "cancelled")
        await asyncio.gather(self._runner.stop(job), self._sessions.stop(job))

    async def _start(self, token: bytes, raw: bytes) -> bytes:
        request: wire.StartTrainingRequest = parse(wire.StartTrainingRequest, raw)
        owner, name = _names(request.protocol_version, request.name)
        spec = wire.decode_spec(JobSpec, request.spec, what="job")
        if spec.steps is not None:
            raise RequestError("a job with `steps` is interactive; open it with TrainInteractively")
        self._check_target(spec)  # first of all: who asks about no data set learns before an upload
        dataset = self._tenants.dataset(token, owner)
        job = dataset.jobs.get(name)
        if job is None:
            stored, records = dataset.store.count, dataset.spec.records
            if stored < records:
                raise RequestError(f"{stored} of {records} releases are stored; upload the rest first")
            trainable = await asyncio.to_thread(dataset.store.trainable)
            if trainable < 2:
                raise RequestError(
                    f"{trainable} releases to train on; upload at least 2 that are not held out"
                )
        self._runner.submit(await self._enter(token, owner, name, spec))
        return wire.StartTrainingResponse().SerializeToString()

    async def _enter(self, token: bytes, owner: str, name: str, spec: JobSpec) -> Job:
        """A job of the tenant, entered if it is new, and begun again if it failed."""
        self._check_target(spec)
        async with self._tenants.changing(token):
            dataset = self._tenants.dataset(token, owner)
            job = await asyncio.to_thread(self._tenants.start, dataset, name, spec)
            if job.state.state == "failed":
                await begin_again(job)
            return job

    def _check_target(self, spec: JobSpec) -> None:
        target = spec.architecture.target
        if target not in OURS and target not in self._config.allow:
            raise CloudMismatchError(
                f"target {target!r} is not one of Delta's own and not allowed at this cloud; ask its operator "
                f"for --allow {target}"
            )

    async def _watch(self, token: bytes, raw: bytes, context: Context) -> None:
        request: wire.WatchTrainingRequest = parse(wire.WatchTrainingRequest, raw)
        owner, name = _names(request.protocol_version, request.name)
        _, job = self._tenants.job(token, owner, name)
        while True:
            changed, state = job.changed, job.state
            await context.write(wire.encode_state(state).SerializeToString())
            if state.state in FINAL:
                return
            if self._draining.is_set():
                raise CloudUnavailableError("the server is stopping; watch again later")
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), _HEARTBEAT_S)

    async def _cancel(self, token: bytes, raw: bytes) -> bytes:
        request: wire.CancelTrainingRequest = parse(wire.CancelTrainingRequest, raw)
        owner, name = _names(request.protocol_version, request.name)
        _, job = self._tenants.job(token, owner, name)
        await self._stop(job)
        return wire.CancelTrainingResponse().SerializeToString()

    async def _fetch_logits(self, token: bytes, raw: bytes, context: Context) -> None:
        request: wire.FetchLogitsRequest = parse(wire.FetchLogitsRequest, raw)
        owner, name = _names(request.protocol_version, request.name)
        _, job = self._tenants.job(token, owner, name)
        job.result()
        if job.interactive:
            raise RequestError("an interactive job has no logits of held-out records; ask in its session")
        pieces = read_logits(job.folder, piece_bytes=wire.PIECE_BYTES)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            await context.write(wire.FetchLogitsResponse(logits=piece).SerializeToString())

    async def _fetch_checkpoint(self, token: bytes, raw: bytes, context: Context) -> None:
        request: wire.FetchCheckpointRequest = parse(wire.FetchCheckpointRequest, raw)
        owner, name = _names(request.protocol_version, request.name)
        _, job = self._tenants.job(token, owner, name)
        result = job.result()
        head: dict[str, Any] = {"sha256": result.weights_hash, "size": result.size}
        pieces = read_weights(job.folder, piece_bytes=wire.PIECE_BYTES)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            await context.write(wire.FetchCheckpointResponse(data=piece, **head).SerializeToString())
            head = {}

    async def _promote(self, token: bytes, raw: bytes) -> bytes:
        request: wire.PromoteCheckpointRequest = parse(wire.PromoteCheckpointRequest, raw)
        owner, name = _names(request.protocol_version, request.name)
        if not request.manifest:
            return await self._withdraw(token, owner, name)
        manifest = wire.decode_spec(Manifest, request.manifest, what="manifest")
        dataset, job = self._tenants.job(token, owner, name)
        check_manifest(manifest, dataset, job, job.result())
        async with self._tenants.changing(token):
            tenant = self._tenants.tenant(token)
            await asyncio.to_thread(self._tenants.check_model, tenant, manifest.name)
            fresh = self._promoted.claim(tenant, manifest.name)
            try:
                hosted = await asyncio.to_thread(self._promoted.make, tenant, manifest, job)
            except BaseException:
                if fresh:
                    self._promoted.release(manifest.name)
                raise
            self._promoted.serve(hosted)
        event("promoted", tenant=tenant.label, model=manifest.name)
        return wire.PromoteCheckpointResponse().SerializeToString()

    async def _withdraw(self, token: bytes, owner: str, name: str) -> bytes:
        async with self._tenants.changing(token):
            found = self._promoted.withdraw(tenant_key(token), owner, name)
        event("withdrawn", tenant=tenant_key(token)[:8], models=found)
        return wire.PromoteCheckpointResponse().SerializeToString()

    async def _interact(self, token: bytes, reader: Reader, context: Context) -> None:
        raw = await reader.next(idle_s=self._config.handshake_s)
        first: wire.TrainInteractivelyRequest = parse(wire.TrainInteractivelyRequest, raw or b"")
        if not first.HasField("hello"):
            raise RequestError("the first message of an interactive training must be its hello")
        hello = first.hello
        owner, name = _names(hello.protocol_version, hello.name)
        spec = wire.decode_spec(JobSpec, hello.spec, what="job")
        if spec.steps is None:
            raise RequestError("an interactive job needs `steps`; start a one-shot job with StartTraining")
        if hello.step > spec.steps:
            raise RequestError(f"step {hello.step} of a job of {spec.steps}; go on from one that it has")
        self._tenants.dataset(token, owner)
        job = await self._enter(token, owner, name, spec)
        if not job.final:  # one that is done may still be asked
            await asyncio.to_thread(self._tenants.check_share, job.folder)
        await self._sessions.serve(job, hello.step, reader, context)


def _checked(version: int, name: str) -> str:
    check_version(version, peer="client")
    return wire.check_name(name)


def _names(version: int, name: wire.JobName) -> tuple[str, str]:
    return _checked(version, name.dataset), wire.check_name(name.job)
