"""One-shot stage 2: the releases are uploaded once, and the cloud trains on them by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator

from delta.errors import CloudAnswerError, CloudTrainingError, CloudUnavailableError
from delta.methods.delta.fusion import check_answer
from delta.training.batches import steps_of
from delta.training.cloud import UploadChunk
from delta.training.fit import Progress
from delta.training.job_watch import JobWatch
from delta.training.task import Outcome, Task
from delta.training.uploads import Uploads

__all__ = ["train_one_shot"]

_ATTEMPTS = 6  # of an upload that is cut again and again without a single record more


def train_one_shot(task: Task) -> Outcome:
    """Upload, start, watch to the end, and take the held-out logits.

    Raises:
        CloudError: the cloud failed; the same call goes on from what it has acknowledged.
    """
    started = time.perf_counter()
    names = task.names(task.job)
    resumed = _upload(task, names[0])
    uploaded = time.perf_counter()
    task.cloud.start(*names, task.job)
    _wait(task, names)
    releases = task.uploads.releases
    held_out = int(releases.held_out.sum())
    rows = check_answer(
        task.cloud.held_out_logits(*names, records=held_out),
        records=held_out,
        classes=task.dataset.classes,
    )
    logits = task.uploads.held_out_rows(rows, fit_records=len(task.stage.fit.y))
    return Outcome(names, task.parts, logits, upload_s=uploaded - started, resumed=resumed)


def _upload(task: Task, name: str) -> bool:
    """Upload what the cloud has not acknowledged; a cut goes on from there, until it gets no further.

    Returns:
        Whether a part was there before.
    """
    cloud, uploads, progress, label = task.cloud, task.uploads, task.told, f"upload, {task.label}"
    before = furthest = stored = _acknowledged(cloud.create(name, task.dataset), uploads)
    attempts = 0
    while stored < len(uploads):
        try:
            stored = cloud.upload(name, _told(uploads, stored, progress, label))
        except CloudUnavailableError as error:
            reason = error
            stored = cloud.create(name, task.dataset)
        else:
            reason = CloudUnavailableError("the cloud acknowledged less than was sent")
        attempts = 0 if _acknowledged(stored, uploads) > furthest else attempts + 1
        furthest = max(furthest, stored)  # a cloud that forgets and stores again in turn ends, too
        if attempts >= _ATTEMPTS:
            raise CloudUnavailableError(
                f"the upload got no further than {stored} of {len(uploads)} releases: {reason}; run again to go on"
            )
    progress(label, len(uploads), len(uploads))
    return before > 0


def _acknowledged(stored: int, uploads: Uploads) -> int:
    """What the cloud says that it has stored, if that can be (I4)."""
    if not 0 <= stored <= len(uploads):
        raise CloudAnswerError(f"the cloud says that it has stored {stored} releases of {len(uploads)}")
    return stored


def _told(uploads: Uploads, start: int, progress: Progress, label: str) -> Iterator[UploadChunk]:
    for chunk in uploads.chunks(start=start):
        progress(label, chunk.first, len(uploads))
        yield chunk


def _wait(task: Task, names: tuple[str, str]) -> None:
    """Watch a job to its end.

    Raises:
        CloudTrainingError: it failed or was cancelled.
        CloudAnswerError: a state that cannot be.
        CloudDeadlineError: it gets no further.
    """
    trained = int((~task.uploads.releases.held_out).sum())
    watch = JobWatch(steps_of(trained, task.job.fit), patience_s=task.patience_s)
    state, told = None, 0
    for state in task.cloud.watch(*names):
        watch.take(state)
        if state.steps and state.step > told:  # the end is told by two states
            told = state.step
            task.told(task.label, state.step, state.steps)
    if state is None or state.state != "done":
        what = "ended without a word" if state is None else state.state
        why = f": {state.message}" if state is not None and state.message else ""
        raise CloudTrainingError(f"the training in the cloud {what}{why}")
