"""An interactive training over gRPC: a batch up, its logits down, one exchange at a time."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from torch import Tensor

from delta.errors import CloudAnswerError, CloudError, CloudUnavailableError, RequestError
from delta.wire.predict import decode_logits
from delta.wire.status import error_from_failure
from delta.wire.training import (
    InteractiveHello,
    TrainInteractivelyRequest,
    TrainInteractivelyResponse,
    encode_exchange,
)
from delta_client.calls import Answers, Calls, Feed

__all__ = ["GrpcInteractiveSession"]


class GrpcInteractiveSession:
    """An open stream; see `delta.training.cloud.InteractiveSession`.

    A batch that the cloud refuses leaves the session as it is; whatever else goes wrong ends it.

    Args:
        calls: of the training service.
        hello: opens the job.
        classes: logits a record.
        max_records: records that one batch may hold.

    Raises:
        CloudError: the cloud cannot be reached, or denies or refuses the job.
    """

    def __init__(self, calls: Calls, hello: InteractiveHello, *, classes: int, max_records: int) -> None:
        self._calls = calls
        self._classes = classes
        self._max_records = max_records
        self._feed = Feed()
        self._answers: Answers[TrainInteractivelyResponse] = calls.exchange(
            "TrainInteractively", self._feed, TrainInteractivelyResponse
        )
        self._error: CloudError | RequestError | None = None
        self._send(TrainInteractivelyRequest(hello=hello))
        if not self._receive().ready:
            raise self._broken(CloudAnswerError("the cloud did not answer the hello of an interactive job"))

    def exchange(self, bits: Tensor, labels: Tensor, *, update: bool, checkpoint: bool = False) -> Tensor:
        """Send a batch, get its logits; see the contract.

        Raises:
            CloudError: the cloud failed, did not answer in time, or the stream was cut.
            RequestError: the batch does not fit, here or in the cloud's eyes.
        """
        if self._error is not None:
            raise self._error
        count = len(bits)
        if not 1 <= count <= self._max_records:
            raise RequestError(f"a batch of {count} records; send 1 to {self._max_records} in each")
        self._send(encode_exchange(bits, labels, classes=self._classes, update=update, checkpoint=checkpoint))
        answer = self._receive()
        if answer.HasField("failure"):
            raise error_from_failure(answer.failure)
        if answer.ready:
            raise self._broken(CloudAnswerError("the cloud greeted twice in one interactive job"))
        try:
            return decode_logits(answer.logits, count=count, classes=self._classes)
        except CloudAnswerError as error:
            raise self._broken(error) from None

    def close(self) -> None:
        """Tell the cloud that no batch comes, and wait until it has put its results away.

        Raises:
            CloudError: it does not end in order.
        """
        if self._error is not None:
            return
        self._feed.end()
        if self._next() is not None:
            raise self._broken(CloudAnswerError("the cloud answered a batch that was never sent"))
        self._broken(CloudUnavailableError("the session is closed; open another one"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:  # what has gone wrong is told already
            self._broken(CloudUnavailableError("the session is closed; open another one"))

    def _send(self, request: TrainInteractivelyRequest) -> None:
        try:
            self._feed.put(
                request, timeout_s=self._calls.timeout_s
            )  # if the call has ended, the reader learns why
        except TimeoutError:
            raise self._broken(self._calls.late()) from None

    def _receive(self) -> TrainInteractivelyResponse:
        answer = self._next()
        if answer is None:
            raise self._broken(
                CloudUnavailableError(f"the cloud at {self._calls.address} ended the interactive job")
            )
        return answer

    def _next(self) -> TrainInteractivelyResponse | None:
        try:
            return self._answers.next()
        except (CloudError, RequestError) as error:
            raise self._broken(error) from None

    def _broken(self, error: CloudError | RequestError) -> CloudError | RequestError:
        """End the call; whoever uses the session again is told why."""
        if self._error is None:
            self._error = error
        self._feed.drop()
        self._answers.cancel()
        return error
