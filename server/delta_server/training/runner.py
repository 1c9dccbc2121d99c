"""Runs jobs one after the other, each in a process of its own, so that serving goes on undisturbed."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any, Literal

from delta.errors import InputError
from delta.training.cloud import JobState
from delta_server.config import ServerConfig
from delta_server.log import event
from delta_server.training.jobs import Job
from delta_server.training.process import Worker
from delta_server.training.result import read_result

__all__ = ["Runner", "end_job"]

_RESTARTS = 2  # of a process that ended without a word: it goes on from its checkpoint


async def end_job(job: Job, state: Literal["failed", "cancelled"], message: str = "") -> None:
    """Enter and write down an end that is no result."""
    try:
        job.set(await asyncio.to_thread(job.ended, state, message))
    except InputError:  # a full disk: known until the server ends
        now = job.state
        job.set(JobState(state, now.step, now.steps, now.loss, message))


class Runner:
    """The one-shot jobs of a server; lives on its event loop.

    Args:
        config: how many train at a time, and on what.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._slots = asyncio.Semaphore(config.train_jobs)
        self._tasks: dict[Job, asyncio.Task[None]] = {}

    def submit(self, job: Job) -> None:
        """Train a job once it is its turn; one that waits, runs or has ended already stays as it is."""
        if job.final or job in self._tasks:
            return
        task = self._tasks[job] = asyncio.create_task(self._train(job))
        task.add_done_callback(lambda _: self._tasks.pop(job, None))

    async def stop(self, job: Job) -> None:
        """End a job's process, if it has one; the job's state stays as it is."""
        task = self._tasks.get(job)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def close(self) -> None:
        """End all processes; their jobs go on from their checkpoints when the server is started again."""
        tasks = set(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _train(self, job: Job) -> None:
        async with self._slots:
            try:
                await self._attempts(job)
            except Exception as error:  # nobody awaits this task
                event("training failed", kind=type(error).__name__)
                await end_job(job, "failed", "the training could not be run; see the cloud's log")

    async def _attempts(self, job: Job) -> None:
        status = 0
        for attempt in range(1 + _RESTARTS):
            now = job.state
            job.set(JobState("running", now.step, now.steps, now.loss))
            worker = await Worker.start(
                "worker", job.folder, self._config, processes=self._config.train_workers
            )
            event("training", pid=worker.pid, attempt=attempt, processes=self._config.train_workers)
            try:
                failure = await _follow(job, worker)
                status = await worker.ended()
            finally:
                await worker.stop()
            result = await asyncio.to_thread(read_result, job.folder)
            if result is not None:
                job.set(JobState("done", result.steps, result.steps, result.loss))
                event("trained", steps=result.steps)
                return
            if failure:
                await end_job(job, "failed", failure)
                return
            event("training process ended", status=status, attempt=attempt)
        await end_job(job, "failed", f"the training process ended with status {status}; see the cloud's log")


async def _follow(job: Job, worker: Worker) -> str:
    """Enter what a worker tells until it ends; why it failed, if it says so."""
    failure = ""
    while line := await worker.line():
        with suppress(ValueError, KeyError, TypeError):  # what is no line of the worker's is none of ours
            told: dict[str, Any] = json.loads(line)
            if "failed" in told:
                failure = str(told["failed"])
            else:
                job.set(JobState("running", int(told["step"]), int(told["steps"]), told["loss"]))
    return failure
