"""A job: what it is told to train, how far it has come, and what of that outlives the server."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from delta.config import Strict
from delta.errors import CloudTrainingError, RequestError
from delta.files import sync_folder, write_whole
from delta.training.cloud import JobState
from delta.training.spec import JobSpec
from delta_server.training.result import JobResult, read_result

__all__ = ["CHECKPOINTS", "FINAL", "SPEC", "Job", "read_job"]

SPEC, CHECKPOINTS = "spec.json", "checkpoints"
FINAL = ("done", "failed", "cancelled")
_ENDED = "ended.json"


class _Ended(Strict):
    """The end of a job that is not done."""

    state: Literal["failed", "cancelled"]
    step: int
    steps: int
    message: str


class Job:
    """One job of a data set; lives on the event loop.

    Args:
        folder: of the job; holds its specification.
        spec: what to train.
        state: how far it has come.

    Attributes:
        spec: what to train.
        folder: of the job.
        changed: set, and replaced by a new one, whenever the state changes.
        session: held by the interactive session that is open.
        ending: held by whoever writes down that the job has ended, or that this no longer holds.
    """

    def __init__(self, folder: Path, spec: JobSpec, state: JobState) -> None:
        self.folder = folder
        self.spec = spec
        self.changed = asyncio.Event()
        self.session = asyncio.Lock()
        self.ending = asyncio.Lock()
        self._state = state

    @property
    def state(self) -> JobState:
        """How far it has come."""
        return self._state

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self._state.state in FINAL

    @property
    def tenant(self) -> str:
        """Key of the tenant whose job it is."""
        return self.folder.parents[2].name

    @property
    def interactive(self) -> bool:
        """Whether the private side sends each batch."""
        return self.spec.steps is not None

    def set(self, state: JobState) -> None:
        """Enter a new state and tell those who watch; a job that has ended stays as it ended."""
        if not self.final:
            self._enter(state)

    def begin_again(self, state: JobState) -> None:
        """Enter the state of a job whose end no longer holds: see `reopened`."""
        self._enter(state)

    def ended(self, state: Literal["failed", "cancelled"], message: str) -> JobState:
        """Write down an end that is not the job's result, so that a restart knows of it; touches the disk only.

        Raises:
            InputError: it cannot be written.
        """
        now = self._state
        end = _Ended(state=state, step=now.step, steps=now.steps, message=message)
        write_whole(self.folder / _ENDED, end.model_dump_json().encode())
        return JobState(state, now.step, now.steps, now.loss, message)

    def reopened(self) -> JobState:
        """Forget an end that was written down; touches the disk only. What the job has checkpointed stays.

        Raises:
            OSError: it cannot be deleted.
        """
        (self.folder / _ENDED).unlink(missing_ok=True)
        sync_folder(self.folder)
        return _state_of(self.folder, self.spec)

    def left_bytes(self) -> int:
        """Bytes of the job's files; touches the disk only, and a worker may be writing there."""
        total = 0
        for home, _, names in os.walk(self.folder):
            for name in names:
                with suppress(OSError):  # it is gone
                    total += os.lstat(os.path.join(home, name)).st_size
        return total

    def result(self) -> JobResult:
        """What the finished job left.

        Raises:
            RequestError: it is not done.
            CloudTrainingError: it never will be.
        """
        found = read_result(self.folder)
        if found is not None:
            return found
        state = self._state
        if state.state == "failed":
            raise CloudTrainingError("the job is failed and has no result; start it again to go on")
        if state.state == "cancelled":
            raise CloudTrainingError("the job is cancelled and has no result; start another one")
        raise RequestError(
            f"the job is not done ({state.state}, step {state.step} of {state.steps or '?'}); watch it first"
        )

    def _enter(self, state: JobState) -> None:
        if state != self._state:
            self._state = state
            self.changed.set()
            self.changed = asyncio.Event()


def read_job(folder: Path) -> Job | None:
    """A job as its folder tells; none where no specification can be read."""
    try:
        spec = JobSpec.model_validate_json((folder / SPEC).read_bytes())
    except (OSError, ValidationError):
        return None
    return Job(folder, spec, _state_of(folder, spec))


def _state_of(folder: Path, spec: JobSpec) -> JobState:
    done = read_result(folder)
    if done is not None:
        return JobState("done", done.steps, done.steps, done.loss)
    try:
        end = _Ended.model_validate_json((folder / _ENDED).read_bytes())
    except (OSError, ValidationError):
        return JobState("waiting", 0, spec.steps or 0)
    return JobState(end.state, end.step, end.steps, None, end.message)
