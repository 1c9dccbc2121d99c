"""Asking the cloud: one operation, as many requests as the record count makes, one outcome."""

from __future__ import annotations

import math
import time
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass

import torch
from torch import Tensor

from delta.errors import CloudDeadlineError, CloudError, CloudUnavailableError, RequestError
from delta.methods.delta.fusion import check_answer
from delta.methods.schema import PREDICT
from delta.transport.base import Answer, Transport

__all__ = ["RECORDS_A_REQUEST", "Outcome", "ask", "outcome_of"]

RECORDS_A_REQUEST = 64
"""Every cloud takes so many in one message, whatever a record weighs."""

_GRACE_S = 0.25
"""How much longer than the deadline the private side waits for the transport to report it."""


@dataclass(frozen=True)
class Outcome:
    """What became of the requests of one batch.

    Attributes:
        logits: `[n, classes]`; none if nothing was asked or any request failed: a batch is answered whole or
            not at all.
        failure: the first failure.
        cloud_ms: the cloud's stated times, summed; 0 where one is no time at all (I4).
        bytes_up: of the requests answered.
        bytes_down: of their answers.
    """

    logits: Tensor | None
    failure: Exception | None
    cloud_ms: float
    bytes_up: int
    bytes_down: int


def ask(transport: Transport, payload: Tensor, *, deadline_s: float) -> list[Future[Answer]]:
    """Send packed bits `[n, B]`; the number of requests depends on n alone (I1)."""
    return [
        transport.submit(PREDICT, {"bits": part}, deadline_s=deadline_s)
        for part in torch.split(payload, RECORDS_A_REQUEST)
    ]


def outcome_of(requests: list[Future[Answer]], *, records: int, classes: int, deadline_s: float) -> Outcome:
    """Wait for all answers, each checked; never longer than the deadline and a moment."""
    end = time.monotonic() + deadline_s + _GRACE_S
    answers: list[Answer] = []
    parts: list[Tensor] = []
    failure: Exception | None = None
    for index, request in enumerate(requests):
        expected = min(RECORDS_A_REQUEST, records - index * RECORDS_A_REQUEST)
        try:
            answer = request.result(timeout=max(0.0, end - time.monotonic()))
            answers.append(answer)
            parts.append(check_answer(answer.tensors.get("logits"), records=expected, classes=classes))
        except FutureTimeout:
            request.cancel()
            failure = failure or CloudDeadlineError(f"the cloud did not answer within {deadline_s:g} s")
        except CancelledError:
            failure = failure or CloudUnavailableError("the request was cancelled before the answer came")
        except (CloudError, RequestError) as error:
            failure = failure or error
    return Outcome(
        logits=torch.cat(parts) if parts and failure is None else None,
        failure=failure,
        cloud_ms=sum(answer.cloud_ms for answer in answers if 0 <= answer.cloud_ms < math.inf),
        bytes_up=sum(answer.bytes_up for answer in answers),
        bytes_down=sum(answer.bytes_down for answer in answers),
    )
