"""An interactive training: a stream of a client on one side, a worker process on the other."""

from __future__ import annotations

import asyncio

from google.protobuf.message import DecodeError

from delta.errors import CloudOverloadedError, CloudTrainingError, CloudUnavailableError
from delta.training.cloud import JobState
from delta.wire.status import error_from_failure
from delta.wire.training import TrainInteractivelyRequest, TrainInteractivelyResponse
from delta_server.config import ServerConfig
from delta_server.guard import Context
from delta_server.log import event
from delta_server.training.jobs import Job
from delta_server.training.process import Worker
from delta_server.training.reading import Reader
from delta_server.training.result import read_result

__all__ = ["Sessions"]

_TAKEOVER_S = 5.0  # a stream that was cut may take a moment to be noticed


class Sessions:
    """The interactive sessions of a server.

    Args:
        config: how many may be open, and on what they train.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._places: set[Job] = set()
        self._open: dict[Job, Worker] = {}

    async def serve(self, job: Job, step: int, reader: Reader, context: Context) -> None:
        """Serve a stream behind its hello until the client ends it.

        Args:
            job: to train.
            step: to go on from.
            reader: of the client's messages.
            context: of the call.

        Raises:
            CloudOverloadedError: the job has a session already, or too many are open.
            CloudMismatchError: no checkpoint is there at that step.
            CloudTrainingError: the job was cancelled, or its process ended.
        """
        try:
            async with asyncio.timeout(_TAKEOVER_S):
                await job.session.acquire()
        except TimeoutError:
            raise CloudOverloadedError("the job has an open session already; end that one first") from None
        try:
            self._check(job)
            self._places.add(job)
            await self._run(job, step, reader, context)
        finally:
            self._places.discard(job)
            job.session.release()

    async def stop(self, job: Job) -> None:
        """End a job's session, if one is open."""
        worker = self._open.get(job)
        if worker is not None:
            await worker.stop()

    async def close(self) -> None:
        """End all sessions."""
        await asyncio.gather(*(worker.stop() for worker in list(self._open.values())))

    def _check(self, job: Job) -> None:
        if job.state.state in ("failed", "cancelled"):
            raise CloudTrainingError(f"the job is {job.state.state}; start another one")
        if len(self._places) >= self._config.train_sessions:
            raise CloudOverloadedError(
                f"{self._config.train_sessions} interactive trainings are open already; try again later"
            )
        if sum(other.tenant == job.tenant for other in self._places) >= self._config.sessions_each:
            raise CloudOverloadedError(
                f"this tenant has {self._config.sessions_each} interactive trainings open already; end one first"
            )

    async def _run(self, job: Job, step: int, reader: Reader, context: Context) -> None:
        steps = job.spec.steps or 0
        worker = await Worker.start(
            "interactive_worker", job.folder, self._config, options=("--step", str(step))
        )
        self._open[job] = worker
        event("interactive training", pid=worker.pids[0], step=step, steps=steps)
        if not job.final:
            job.set(JobState("running", step, steps))
        try:
            await self._relay(job, step, worker, reader, context)
        finally:
            del self._open[job]
            await worker.stop()
            if not job.final:
                job.set(JobState("waiting", job.state.step, steps))
            event("interactive training ended", step=job.state.step, steps=steps)

    async def _relay(self, job: Job, step: int, worker: Worker, reader: Reader, context: Context) -> None:
        steps = job.spec.steps or 0
        await context.write(_checked(await worker.message(), job, first=True))
        while (raw := await reader.next(idle_s=self._config.train_idle_s)) is not None:
            update = _updates(raw)
            await worker.send(raw)
            answer = _checked(await worker.message(), job)
            if update and not TrainInteractivelyResponse.FromString(answer).HasField("failure"):
                step += 1
                if step >= steps and read_result(job.folder) is not None:
                    job.set(JobState("done", step, steps))
                elif not job.final:
                    job.set(JobState("running", step, steps))
            await context.write(answer)


def _checked(answer: bytes | None, job: Job, *, first: bool = False) -> bytes:
    """A worker's message, if it is one, and not the refusal of the whole session."""
    if answer is None:
        if job.state.state == "cancelled":
            raise CloudTrainingError("the job was cancelled; start another one")
        raise CloudUnavailableError("the training process ended; go on from the last checkpoint")
    if first:
        opened = TrainInteractivelyResponse.FromString(answer)
        if opened.HasField("failure"):
            raise error_from_failure(opened.failure)
    return answer


def _updates(raw: bytes) -> bool:
    """Whether a message asks for a step; one that is no message is refused by the worker."""
    try:
        return bool(TrainInteractivelyRequest.FromString(raw).update)
    except DecodeError:
        return False
