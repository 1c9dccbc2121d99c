"""One call's dealings with the cloud: requests whose answer is waited for, and what they cost together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout

import torch
from torch import Tensor

from delta.bundle.manifest import PrivateFacts
from delta.errors import (
    CloudAnswerError,
    CloudDeadlineError,
    CloudError,
    CloudMismatchError,
    CloudUnavailableError,
    RequestError,
)
from delta.methods.base import Cost
from delta.transport.base import Answer, Transport

__all__ = ["Call", "checked_answer"]

_GRACE_S = 0.25
"""How much longer than the deadline the private side waits for the transport to report it."""
_REQUEST_BYTES = 24 * 2**20
"""Records go in several requests where one would weigh more, or its answer would."""


class Call:
    """The stopwatch and the way to the cloud of one `infer` or `train_step`, from its making on.

    What is not spent waiting for the cloud counts as the private side's own time.

    Args:
        transport: none: every `ask` fails.
        deadline_s: of the whole call, seconds from now.
    """

    def __init__(self, transport: Transport | None, *, deadline_s: float) -> None:
        self._transport = transport
        self._deadline_s = deadline_s
        self._started = time.perf_counter()
        self._end = time.monotonic() + deadline_s
        self._waited_s = 0.0
        self._answers: list[Answer] = []
        self.round_trips = 0

    def ask(self, op: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One request and its answer, which is untrusted (I4): see `checked_answer`.

        Raises:
            CloudError: no cloud, no answer in time, its failure, or its refusal.
        """
        return self.collect([self.submit(op, tensors)])[0].tensors

    def ask_records(
        self,
        op: str,
        x: Tensor,
        *,
        output: str,
        shape: Sequence[int],
        dtype: torch.dtype,
        others: Mapping[str, Tensor] | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Tensor:
        """Ask about records `x` `[n, …]`, in as many requests as they weigh.

        Args:
            op: an operation that takes them as `x`.
            x: the records; what is sent.
            output: name of the answer's one tensor.
            shape: of one record's answer.
            dtype: of the answer.
            others: further inputs, sent with every request.
            meanwhile: what this side computes while the cloud does.

        Returns:
            `[n, *shape]`, checked for shape and dtype and, where floating, for being finite.

        Raises:
            CloudError: as `ask`; `CloudAnswerError` for an answer that does not fit.
        """
        weight = max(x[0].numel() * x.element_size(), math.prod(shape) * dtype.itemsize, 1)
        parts = torch.split(x, max(1, _REQUEST_BYTES // weight))
        requests = [self.submit(op, {**(others or {}), "x": part}) for part in parts]
        if meanwhile is not None:
            meanwhile()
        found = [
            checked_answer(answer.tensors, output, shape=(len(part), *shape), dtype=dtype)
            for answer, part in zip(self.collect(requests), parts, strict=True)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    def cost(self, facts: PrivateFacts) -> Cost:
        """What the call has cost until now, with the counts of the bundle."""
        wall_s = time.perf_counter() - self._started
        return Cost(
            private_ms=1e3 * max(0.0, wall_s - self._waited_s),
            cloud_ms=sum(answer.cloud_ms for answer in self._answers if 0 <= answer.cloud_ms < math.inf),
            wall_ms=1e3 * wall_s,
            bytes_up=sum(answer.bytes_up for answer in self._answers),
            bytes_down=sum(answer.bytes_down for answer in self._answers),
            round_trips=self.round_trips,
            private_macs=facts.private_macs,
            cloud_macs=facts.cloud_macs,
            peak_private_mib=facts.peak_private_bytes / 2**20,
        )

    def submit(self, op: str, tensors: Mapping[str, Tensor]) -> Future[Answer]:
        """One request, under way; `collect` waits for it.

        Raises:
            CloudUnavailableError: there is no cloud.
        """
        if self._transport is None:
            raise CloudUnavailableError("there is no cloud; give its HOST:PORT")
        # Always the same deadline on the wire: what is left of it would tell how long this side has worked.
        return self._transport.submit(op, tensors, deadline_s=self._deadline_s)

    def collect(self, requests: list[Future[Answer]]) -> list[Answer]:
        """All answers, or the first failure once every request has ended.

        Raises:
            CloudError: as `ask`.
        """
        started = time.perf_counter()
        self.round_trips += 1  # they are under way together: one wait, however many there are
        answers: list[Answer] = []
        failure: Exception | None = None
        for request in requests:
            try:
                answers.append(request.result(timeout=max(0.0, self._end + _GRACE_S - time.monotonic())))
            except FutureTimeout:
                request.cancel()
                failure = failure or CloudDeadlineError(
                    f"the cloud did not answer within {self._deadline_s:g} s"
                )
            except CancelledError:
                failure = failure or CloudUnavailableError("the request was cancelled before the answer came")
            except RequestError as error:
                failure = failure or CloudMismatchError(f"the cloud refuses the request: {error}")
            except CloudError as error:
                failure = failure or error
        self._waited_s += time.perf_counter() - started
        self._answers += answers
        if failure is not None:
            raise failure
        return answers


def checked_answer(
    tensors: Mapping[str, Tensor], name: str, *, shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """One tensor of an answer, or an error: an answer is untrusted input (I4), and no gradient comes with it (I3).

    Raises:
        CloudAnswerError: absent, of another shape or type, or, where floating, not finite.
    """
    tensor = tensors.get(name)
    if tensor is None:
        raise CloudAnswerError(f"the cloud's answer holds no {name!r}")
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
        raise CloudAnswerError(
            f"the cloud's {name!r} is {tensor.dtype}{list(tensor.shape)}, expected {dtype}{list(shape)}"
        )
    # Both ends are NaN where one value is, and are found many times faster than by looking at each value.
    if tensor.is_floating_point() and not all(map(math.isfinite, (tensor.amin(), tensor.amax()))):
        raise CloudAnswerError(f"the cloud's {name!r} is not finite")
    return tensor.detach()
