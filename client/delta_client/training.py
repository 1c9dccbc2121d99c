"""Training in a cloud over gRPC: upload, start, watch and fetch; its answers are untrusted (I4)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import grpc
import torch
from google.protobuf.message import Message
from torch import Tensor

from delta.bundle.manifest import Manifest
from delta.errors import CloudAnswerError, CloudDeadlineError, CloudDeniedError, CloudUnavailableError
from delta.training.cloud import JobState, UploadChunk
from delta.training.spec import DatasetSpec, JobSpec
from delta.wire.session import PROTOCOL_VERSION
from delta.wire.tensors import tensor_from_bytes
from delta.wire.training import (
    AUTHORIZATION,
    TRAINING_SERVICE,
    CancelTrainingRequest,
    CancelTrainingResponse,
    CreateDatasetRequest,
    CreateDatasetResponse,
    DeleteDatasetRequest,
    DeleteDatasetResponse,
    FetchCheckpointRequest,
    FetchCheckpointResponse,
    FetchLogitsRequest,
    FetchLogitsResponse,
    InteractiveHello,
    JobName,
    PromoteCheckpointRequest,
    PromoteCheckpointResponse,
    StartTrainingRequest,
    StartTrainingResponse,
    UploadHead,
    UploadReleasesRequest,
    UploadReleasesResponse,
    WatchTrainingRequest,
    WatchTrainingResponse,
    bearer,
    check_name,
    decode_state,
    encode_chunk,
    encode_spec,
    records_a_chunk,
    resized,
)
from delta_client.calls import Answers, Calls, Feed
from delta_client.interactive import GrpcInteractiveSession
from delta_client.weights import ExpectedWeights

__all__ = ["GrpcTrainingCloud"]

_FINAL = ("done", "failed", "cancelled")
_LEAST_RATE = (
    64 * 1024
)  # of a fetch, bytes a second: a cloud that sends a byte now and then is not waited for

M = TypeVar("M", bound=Message)


@dataclass
class _Dataset:
    """What this side knows of a data set that it has created.

    Attributes:
        classes: logits a record.
        records: releases in it.
        payload_bytes: packed bytes a release.
        max_records: releases that the cloud takes in one message.
        reach: how many the cloud can have: acknowledged before, or sent since.
    """

    classes: int
    records: int
    payload_bytes: int
    max_records: int
    reach: int


class GrpcTrainingCloud:
    """A cloud that trains, at an address; see `delta.training.cloud.TrainingCloud`.

    One thread uses it at a time. An upload that is cut raises `CloudUnavailableError`: `create` then says where
    to go on. A watch that is cut goes on by itself, as long as the job comes on in between.

    Args:
        address: HOST:PORT.
        token: the tenant's at this cloud, 32 bytes: `TenantToken.for_cloud`.
        credentials: of the channel; none for plaintext.
        timeout_s: for each call, and for each message of a stream, seconds.
        chunk_records: releases a message of an upload, if the cloud takes so many.
        pauses_s: before each attempt to take up a watch again, seconds.
        max_answer_bytes: largest message taken from the cloud.
        fetch_s: for all of a fetch, seconds; longer for what takes longer at 64 KiB a second.
    """

    def __init__(
        self,
        address: str,
        token: bytes,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        timeout_s: float = 30.0,
        chunk_records: int = 1024,
        pauses_s: Sequence[float] = (0.2, 0.5, 1.0, 2.0, 4.0),
        max_answer_bytes: int = 64 << 20,
        fetch_s: float = 60.0,
    ) -> None:
        self._calls = Calls(
            address,
            TRAINING_SERVICE,
            metadata=((AUTHORIZATION, bearer(token)),),
            credentials=credentials,
            timeout_s=timeout_s,
            max_answer_bytes=max_answer_bytes,
            missing=f"the cloud at {address} does not train; start it with `delta serve --training DIR`",
        )
        self._chunk_records = chunk_records
        self._pauses_s = tuple(pauses_s)
        self._fetch_s = fetch_s
        self._datasets: dict[str, _Dataset] = {}

    @property
    def bytes_up(self) -> int:
        """Serialised messages sent so far, bytes."""
        return self._calls.bytes_up

    @property
    def bytes_down(self) -> int:
        """Serialised messages received so far, bytes."""
        return self._calls.bytes_down

    def close(self) -> None:
        """Cut the connection; jobs in the cloud go on. Idempotent."""
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create(self, dataset: str, spec: DatasetSpec) -> int:
        """Make a data set, or find it again; returns how many of its releases are stored for good.

        Raises:
            CloudMismatchError: it exists with another specification.
            CloudError: the cloud fails or denies.
        """
        answer = self._calls.unary(
            "CreateDataset",
            CreateDatasetRequest(
                protocol_version=PROTOCOL_VERSION, dataset=check_name(dataset), spec=encode_spec(spec)
            ),
            CreateDatasetResponse,
        )
        if not answer.max_records:
            raise CloudAnswerError("the cloud takes uploads of 0 releases a message; expected 1 or more")
        acknowledged = _acknowledged(answer.acknowledged, most=spec.records)
        self._datasets[dataset] = _Dataset(
            spec.classes, spec.records, spec.release.payload_bytes, answer.max_records, acknowledged
        )
        return acknowledged

    def upload(self, dataset: str, chunks: Iterable[UploadChunk]) -> int:
        """Send releases from the acknowledged prefix on; returns how many are stored for good.

        Chunks are taken one at a time, on this thread, as fast as the network takes them.

        Raises:
            CloudUnavailableError: the connection was cut; `create` says where to go on.
            CloudError: the cloud fails, denies, or has no room.
            RequestError: a chunk does not fit the data set, or leaves a gap.
        """
        known = self._known(dataset)
        most = min(known.max_records, records_a_chunk(known.payload_bytes, most=self._chunk_records))
        feed = Feed()
        with self._calls.upload("UploadReleases", feed, UploadReleasesResponse) as answer:
            try:
                head = UploadHead(protocol_version=PROTOCOL_VERSION, dataset=check_name(dataset))
                feed.put(UploadReleasesRequest(head=head), timeout_s=self._calls.timeout_s)
                for chunk in resized(chunks, most=most):
                    message = encode_chunk(chunk, classes=known.classes)
                    if not feed.put(message, timeout_s=self._calls.timeout_s):
                        break  # the call has ended: its result says why
                    known.reach = max(known.reach, chunk.first + len(chunk.bits))
            except TimeoutError:
                raise self._calls.late() from None
            except BaseException:
                feed.drop()
                raise
            feed.end()
            return _acknowledged(answer.result().acknowledged, most=min(known.reach, known.records))

    def delete(self, dataset: str) -> None:
        """Delete a data set with its jobs; one that is not there is no error."""
        self._calls.unary(
            "DeleteDataset",
            DeleteDatasetRequest(protocol_version=PROTOCOL_VERSION, dataset=check_name(dataset)),
            DeleteDatasetResponse,
        )

    def start(self, dataset: str, job: str, spec: JobSpec) -> None:
        """Start a one-shot job on a complete data set."""
        self._calls.unary(
            "StartTraining",
            StartTrainingRequest(
                protocol_version=PROTOCOL_VERSION, name=_job(dataset, job), spec=encode_spec(spec)
            ),
            StartTrainingResponse,
        )

    def watch(self, dataset: str, job: str) -> Iterator[JobState]:
        """States as they come, the last one final.

        Raises:
            CloudUnavailableError: the stream was cut, and again after every pause without a step in between.
            CloudError: the cloud fails or denies, or what it says is no state.
        """
        request = WatchTrainingRequest(protocol_version=PROTOCOL_VERSION, name=_job(dataset, job))
        pauses, furthest = iter(self._pauses_s), 0
        while True:
            cut: CloudUnavailableError | CloudDeadlineError
            try:
                with self._calls.download("WatchTraining", request, WatchTrainingResponse) as answers:
                    for message in answers:
                        state = decode_state(message)
                        if state.step > furthest:
                            pauses, furthest = iter(self._pauses_s), state.step
                        yield state
                        if state.state in _FINAL:
                            return
                cut = CloudUnavailableError(
                    f"the cloud at {self._calls.address} ended the watch of a job before the job ended"
                )
            except (CloudUnavailableError, CloudDeadlineError) as error:
                cut = error
            pause = next(pauses, None)
            if pause is None:
                raise cut
            time.sleep(pause)

    def cancel(self, dataset: str, job: str) -> None:
        """Stop a job; a finished one stays finished."""
        self._calls.unary(
            "CancelTraining",
            CancelTrainingRequest(protocol_version=PROTOCOL_VERSION, name=_job(dataset, job)),
            CancelTrainingResponse,
        )

    def held_out_logits(self, dataset: str, job: str, *, records: int) -> Tensor:
        """z_cloud of the held-out records in upload order, `[records, classes]` float32; see the contract.

        Raises:
            CloudAnswerError: not as many rows; more than that is not taken.
            CloudDeadlineError: the cloud sends too slowly.
        """
        known = self._known(dataset)
        request = FetchLogitsRequest(protocol_version=PROTOCOL_VERSION, name=_job(dataset, job))
        row = 4 * known.classes
        data = bytearray()
        with self._fetched("FetchLogits", request, FetchLogitsResponse, size=records * row) as answers:
            for message in answers:
                data += message.logits
                if len(data) > records * row or not message.logits:
                    break
        if len(data) != records * row:
            raise CloudAnswerError(
                f"the cloud sent {len(data)} bytes of held-out logits; expected {records} rows of {row}"
            )
        return tensor_from_bytes(bytes(data), torch.float32, (records, known.classes))

    def fetch(self, dataset: str, job: str, *, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The trained weights by name; see the contract.

        Raises:
            CloudAnswerError: more than was declared or than is taken, another hash, or not these weights.
            CloudDeadlineError: the cloud sends too slowly.
        """
        expected = ExpectedWeights(like)
        most = expected.most_bytes
        request = FetchCheckpointRequest(protocol_version=PROTOCOL_VERSION, name=_job(dataset, job))
        data = bytearray()
        size, sha256 = 0, ""
        with self._fetched("FetchCheckpoint", request, FetchCheckpointResponse, size=most) as answers:
            for message in answers:
                if not sha256:
                    size, sha256 = message.size, message.sha256 or "none"
                    if size > most:
                        raise CloudAnswerError(
                            f"the cloud declares weights of {size} bytes; the model's take at most {most}"
                        )
                data += message.data
                if len(data) > size or not message.data:
                    raise CloudAnswerError(
                        f"the cloud sent {len(data)} bytes of weights, the last message {len(message.data)}; "
                        f"it declared {size}"
                    )
        if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
            raise CloudAnswerError(
                f"the cloud's weights are not what it declared ({len(data)} bytes of {size}, or another "
                "SHA-256); fetch them again"
            )
        return expected.parse(bytes(data))

    def promote(self, dataset: str, job: str, manifest: Manifest) -> None:
        """Serve the trained model under a manifest whose `cloud_weights_hash` is that of its weights."""
        self._calls.unary(
            "PromoteCheckpoint",
            PromoteCheckpointRequest(
                protocol_version=PROTOCOL_VERSION, name=_job(dataset, job), manifest=encode_spec(manifest)
            ),
            PromoteCheckpointResponse,
        )

    def interact(self, dataset: str, job: str, spec: JobSpec, *, step: int = 0) -> GrpcInteractiveSession:
        """Open an interactive job at a step that the cloud has checkpointed; 0 starts it."""
        known = self._known(dataset)
        hello = InteractiveHello(
            protocol_version=PROTOCOL_VERSION, name=_job(dataset, job), spec=encode_spec(spec), step=step
        )
        return GrpcInteractiveSession(
            self._calls, hello, classes=known.classes, max_records=known.max_records
        )

    def _fetched(self, method: str, request: Message, answer: type[M], *, size: int) -> Answers[M]:
        """A stream of `size` bytes at most, which has to end in time."""
        return self._calls.download(method, request, answer, whole_s=max(self._fetch_s, size / _LEAST_RATE))

    def _known(self, dataset: str) -> _Dataset:
        known = self._datasets.get(check_name(dataset))
        if known is None:
            raise CloudDeniedError("no data set of that name is known here; create it first")
        return known


def _job(dataset: str, job: str) -> JobName:
    return JobName(dataset=check_name(dataset), job=check_name(job))


def _acknowledged(count: int, *, most: int) -> int:
    """What the cloud says that it has stored, which cannot be more than was sent."""
    if count > most:
        raise CloudAnswerError(f"the cloud says that it has stored {count} releases of {most}")
    return count
