"""Joins requests of all clients into batches, and runs them on one thread of their own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import torch
from torch import Tensor

from delta.errors import CloudDeadlineError, CloudOverloadedError, DeltaError, InternalError
from delta.methods.schema import run_operation
from delta_server.forms import Form
from delta_server.log import event
from delta_server.models import HostedModel
from delta_server.quick import QuickCalls

__all__ = ["Batcher", "Job", "Owner"]


class Owner(Protocol):
    """Who waits for a job's answer: a stream or a call."""

    @property
    def closed(self) -> bool:
        """Whether nobody waits any more: the job is then dropped before it runs."""
        ...

    def encode(self, job: Job, outcome: Any, cloud_ms: float) -> bytes:  # noqa: ANN401
        """Serialise a part of the job's form, or a `DeltaError`; called on the batcher's thread."""
        ...

    def deliver(self, answer: bytes) -> None:
        """Take an answer; called on the event loop."""
        ...


@dataclass(slots=True, eq=False)
class Job:
    """One request.

    Attributes:
        owner: who waits for the answer.
        model: the model asked.
        op: name of the operation.
        payload: inputs in the job's form, checked against the schema.
        form: how payloads of this kind are joined.
        sequence: the request's number in its session.
        records: records in it, along axis 0 of a batchable operation; otherwise 1.
        deadline: when the answer is of no more use, seconds of `time.monotonic`.
        key: jobs of equal key may share a call; none where the operation is not batchable.
    """

    owner: Owner
    model: HostedModel
    op: str
    payload: Any
    form: Form
    sequence: int
    records: int
    deadline: float
    key: object | None
    arrived: float = 0.0


class Batcher:
    """One compute thread with a bounded queue.

    An idle batcher starts a request at once; those that come while a batch runs are joined into the next, the
    oldest first. Operations that are not batchable run alone, and nothing overtakes them.

    Args:
        loop: the event loop on which answers are delivered.
        max_batch: most records in one call.
        max_delay_s: how long a busy batcher may hold the oldest request back to fill its batch, seconds.
        queue_records: most records admitted and not yet answered.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, max_batch: int, max_delay_s: float, queue_records: int
    ) -> None:
        self._loop = loop
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._queue_records = queue_records
        self._admitted = 0
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._quick = QuickCalls()
        self._thread = threading.Thread(target=self._run, name="delta-compute", daemon=True)
        self._thread.start()

    @property
    def admitted(self) -> int:
        """Records admitted and not yet answered."""
        return self._admitted

    def submit(self, job: Job) -> None:
        """Admit a job; on the event loop only.

        A call that is known to cost less than handing it to the other thread and back runs here and now, if
        nothing else waits or runs.

        Raises:
            CloudOverloadedError: the queue is full.
        """
        if self._admitted + job.records > self._queue_records:
            raise CloudOverloadedError(
                f"the queue is full: {self._admitted} of {self._queue_records} records, {job.records} more "
                "do not fit; send again later"
            )
        job.arrived = time.monotonic()
        quick = not self._admitted and self._quick.fits(job.key, job.records)
        self._admitted += job.records
        if quick:
            self._deliver(self._answer([job]))
        else:
            self._inbox.put(job)

    def close(self) -> None:
        """Finish what was admitted and end the thread."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            idle = not self._waiting
            if idle:
                job = self._inbox.get()
                if job is None:
                    return
                self._waiting.append(job)
            open_ = self._fill(hold=not idle)
            batch = self._take()
            answers = self._answer(batch)
            self._loop.call_soon_threadsafe(self._deliver, answers)
            if not open_:
                self._inbox.put(None)

    def _fill(self, *, hold: bool) -> bool:
        """Move what has arrived into the waiting line; false once the end was asked for."""
        until = self._waiting[0].arrived + self._max_delay_s if hold and self._max_delay_s else 0.0
        while True:
            try:
                job = self._inbox.get_nowait()
            except Empty:
                left = until - time.monotonic() if until else 0.0
                if left <= 0 or sum(job.records for job in self._waiting) >= self._max_batch:
                    return True
                try:
                    job = self._inbox.get(timeout=left)
                except Empty:
                    return True
            if job is None:
                return False
            self._waiting.append(job)

    def _take(self) -> list[Job]:
        """The oldest job, and those that may share its call."""
        first = self._waiting.popleft()
        batch, records = [first], first.records
        if first.key is None:
            return batch
        passed: list[Job] = []
        while self._waiting and records < self._max_batch:
            job = self._waiting[0]
            if job.key is None or (job.key == first.key and records + job.records > self._max_batch):
                break
            self._waiting.popleft()
            if job.key == first.key:
                batch.append(job)
                records += job.records
            else:
                passed.append(job)
        self._waiting.extendleft(reversed(passed))
        return batch

    def _answer(self, batch: list[Job]) -> list[tuple[Job, bytes | None]]:
        answers: list[tuple[Job, bytes | None]] = []
        live: list[Job] = []
        now = time.monotonic()
        for job in batch:
            if job.owner.closed:
                answers.append((job, None))
            elif job.deadline <= now:
                late = CloudDeadlineError("the deadline passed in the queue; allow more time")
                answers.append((job, job.owner.encode(job, late, 0.0)))
            else:
                live.append(job)
        if live:
            start = time.perf_counter()
            outcomes = self._outcomes(live)
            cloud_ms = (time.perf_counter() - start) * 1e3
            records = sum(job.records for job in live)
            self._quick.learn(live[0].key, records, cloud_ms)
            for job, outcome in zip(live, outcomes, strict=True):
                # Its share: the requests of one call may ride in one batch, and their times are added up.
                answers.append((job, _encoded(job, outcome, cloud_ms * job.records / records)))
        return answers

    def _outcomes(self, batch: list[Job]) -> list[Any]:
        """One outcome a job, its form's part or an error; when a joined batch fails, each job runs alone."""
        first = batch[0]
        try:
            outputs = self._run_joined(first, first.form.join([job.payload for job in batch]))
            return first.form.split(outputs, [job.records for job in batch])
        except Exception as error:
            if len(batch) > 1:
                return [outcome for job in batch for outcome in self._outcomes([job])]
            if isinstance(error, DeltaError):
                return [error]
            # A cloud half may raise anything; the text may hold tensor contents (I6).
            event("operation failed", model=first.model.binding.model, op=first.op, kind=type(error).__name__)
            return [InternalError("the operation failed in the cloud; see the server's log")]

    def _run_joined(self, first: Job, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """One call, or several of at most `max_batch` records."""
        half, op = first.model.half, first.op
        if first.key is None or next(iter(tensors.values())).shape[0] <= self._max_batch:
            return run_operation(half, op, tensors)
        records, size = next(iter(tensors.values())).shape[0], self._max_batch
        pieces = [
            run_operation(half, op, {name: tensor[at : at + size] for name, tensor in tensors.items()})
            for at in range(0, records, size)
        ]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def _deliver(self, answers: list[tuple[Job, bytes | None]]) -> None:
        for job, answer in answers:
            self._admitted -= job.records
            if answer is not None:
                job.owner.deliver(answer)


def _encoded(job: Job, outcome: Any, cloud_ms: float) -> bytes | None:  # noqa: ANN401
    if job.owner.closed:
        return None
    try:
        return job.owner.encode(job, outcome, cloud_ms)
    except DeltaError as error:
        return job.owner.encode(job, error, cloud_ms)
