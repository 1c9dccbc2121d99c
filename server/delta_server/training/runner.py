"""Runs jobs as tenants take turns, each in processes of its own, so that serving goes on undisturbed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from delta.errors import CloudStorageError, InputError
from delta.training.cloud import JobState
from delta_server.config import ServerConfig
from delta_server.log import event
from delta_server.training.jobs import Job
from delta_server.training.process import Worker
from delta_server.training.result import read_result
from delta_server.training.turns import Turns

__all__ = ["Runner", "begin_again", "end_job"]

_RESTARTS = 2  # of a process that ended without a word: it goes on from its checkpoint


async def end_job(job: Job, state: Literal["failed", "cancelled"], message: str = "") -> None:
    """Enter and write down an end that is no result; a job that has ended stays as it ended."""
    async with job.ending:
        if job.final:
            return
        try:
            job.set(await asyncio.to_thread(job.ended, state, message))
        except InputError:  # a full disk: known until the server ends
            now = job.state
            job.set(JobState(state, now.step, now.steps, now.loss, message))


async def begin_again(job: Job) -> None:
    """Take back that a job failed: it waits once more, and will go on from its last checkpoint.

    Raises:
        CloudStorageError: that cannot be written down.
    """
    async with job.ending:
        if job.state.state != "failed":
            return
        try:
            job.begin_again(await asyncio.to_thread(job.reopened))
        except OSError:
            raise CloudStorageError(
                "the end of the job cannot be taken back; ask the cloud's operator to make its store writable"
            ) from None


class Runner:
    """The one-shot jobs of a server; lives on its event loop.

    Args:
        config: how many train at a time, for how long, and on what.
        check_share: asked with a job's folder at its turn; a `CloudStorageError` of it fails the job.
    """

    def __init__(self, config: ServerConfig, check_share: Callable[[Path], None]) -> None:
        self._config = config
        self._check_share = check_share
        self._turns = Turns(config.train_jobs)
        self._tasks: dict[Job, asyncio.Task[None]] = {}

    def submit(self, job: Job) -> None:
        """Train a job once it is its turn; one that waits, runs or has ended already stays as it is."""
        before = self._tasks.get(job)
        if job.final or (before is not None and not before.done()):
            return
        task = self._tasks[job] = asyncio.create_task(self._train(job))
        task.add_done_callback(lambda done: self._forget(job, done))

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
        async with self._turns.turn(job.tenant):
            try:
                await asyncio.to_thread(self._check_share, job.folder)
                async with asyncio.timeout(self._config.train_job_s):
                    await self._attempts(job)
            except CloudStorageError as error:
                await end_job(job, "failed", str(error))
            except TimeoutError:
                await end_job(
                    job,
                    "failed",
                    f"the job has trained for {self._config.train_job_s:g} s, as long as this cloud lets one; start "
                    "it again to go on from its last checkpoint",
                )
            except Exception as error:  # nobody awaits this task
                event("training failed", kind=type(error).__name__)
                await end_job(job, "failed", "the training could not be run; see the cloud's log")

    def _forget(self, job: Job, task: asyncio.Task[None]) -> None:
        if self._tasks.get(job) is task:  # no other one since
            del self._tasks[job]

    async def _attempts(self, job: Job) -> None:
        status = 0
        for attempt in range(1 + _RESTARTS):
            now = job.state
            job.set(JobState("running", now.step, now.steps, now.loss))
            worker = await Worker.start(
                "worker", job.folder, self._config, processes=self._config.train_workers
            )
            event("training", pid=worker.pids[0], attempt=attempt, processes=len(worker.pids))
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
            if failure and status >= 0:  # not what one of several says when a signal has ended another
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
