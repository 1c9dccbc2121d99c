"""Training across the boundary as messages: names, tokens, specifications, states and results."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar

from pydantic import ValidationError

from delta.config import Strict, explain
from delta.errors import CloudAnswerError, CloudDeniedError, RequestError
from delta.training.cloud import JobState
from delta.v1 import training_pb2 as pb
from delta.v1.training_pb2 import (
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
    TrainInteractivelyRequest,
    TrainInteractivelyResponse,
    UploadHead,
    UploadReleasesRequest,
    UploadReleasesResponse,
    WatchTrainingRequest,
    WatchTrainingResponse,
)
from delta.v1.training_pb2_grpc import TrainingServiceStub
from delta.wire.releases import (
    UPLOAD_BYTES,
    decode_chunk,
    decode_exchange,
    encode_chunk,
    encode_exchange,
    max_upload_records,
    pack_flags,
    pack_labels,
    records_a_chunk,
    resized,
    unpack_flags,
    unpack_labels,
)
from delta.wire.services import TRAINING_SERVICE
from delta.wire.status import one_line

__all__ = [
    "AUTHORIZATION",
    "MAX_SPEC_BYTES",
    "PIECE_BYTES",
    "TOKEN_BYTES",
    "TRAINING_SERVICE",
    "UPLOAD_BYTES",
    "CancelTrainingRequest",
    "CancelTrainingResponse",
    "CreateDatasetRequest",
    "CreateDatasetResponse",
    "DeleteDatasetRequest",
    "DeleteDatasetResponse",
    "FetchCheckpointRequest",
    "FetchCheckpointResponse",
    "FetchLogitsRequest",
    "FetchLogitsResponse",
    "InteractiveHello",
    "JobName",
    "PromoteCheckpointRequest",
    "PromoteCheckpointResponse",
    "StartTrainingRequest",
    "StartTrainingResponse",
    "TrainInteractivelyRequest",
    "TrainInteractivelyResponse",
    "TrainingServiceStub",
    "UploadHead",
    "UploadReleasesRequest",
    "UploadReleasesResponse",
    "WatchTrainingRequest",
    "WatchTrainingResponse",
    "bearer",
    "check_name",
    "checkpoint_messages",
    "decode_chunk",
    "decode_exchange",
    "decode_spec",
    "decode_state",
    "encode_chunk",
    "encode_exchange",
    "encode_spec",
    "encode_state",
    "logits_messages",
    "max_upload_records",
    "pack_flags",
    "pack_labels",
    "records_a_chunk",
    "resized",
    "token_of",
    "unpack_flags",
    "unpack_labels",
]

AUTHORIZATION = "authorization"
"""Metadata that carries a tenant's token."""
TOKEN_BYTES = 32
MAX_SPEC_BYTES = 256 * 1024
"""Of a specification or a manifest, as JSON."""
PIECE_BYTES = 1 << 20
"""Of a result, in one message of a fetch."""

_NAME = re.compile(r"[0-9a-f]{32}")
_BEARER = re.compile(r"Bearer ([0-9a-f]{64})")

S = TypeVar("S", bound=Strict)
State = Literal["waiting", "running", "done", "failed", "cancelled"]

_TO_WIRE: dict[State, pb.TrainingState.ValueType] = {
    "waiting": pb.TRAINING_STATE_WAITING,
    "running": pb.TRAINING_STATE_RUNNING,
    "done": pb.TRAINING_STATE_DONE,
    "failed": pb.TRAINING_STATE_FAILED,
    "cancelled": pb.TRAINING_STATE_CANCELLED,
}
_FROM_WIRE: dict[int, State] = {number: state for state, number in _TO_WIRE.items()}


def check_name(name: str) -> str:
    """A data set's or a job's name, as it is.

    Raises:
        RequestError: it is not 32 lower-case hex digits.
    """
    if not _NAME.fullmatch(name):
        raise RequestError("names of data sets and jobs are 32 lower-case hex digits; draw one at random")
    return name


def bearer(token: bytes) -> str:
    """The value of `AUTHORIZATION` for a tenant's token."""
    return f"Bearer {token.hex()}"


def token_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> bytes:
    """The tenant's token of a call.

    Raises:
        CloudDeniedError: there is none, more than one, or it is malformed.
    """
    values = [value for key, value in metadata or () if key.lower() == AUTHORIZATION]
    text = values[0] if len(values) == 1 else ""
    found = _BEARER.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise CloudDeniedError(
            "this call carries no tenant token; send one as metadata: authorization: Bearer <64 hex digits>"
        )
    return bytes.fromhex(found[1])


def encode_spec(spec: Strict) -> bytes:
    """A specification or a manifest as canonical JSON: equal ones give equal bytes.

    Raises:
        RequestError: it holds what JSON cannot say, or is too long.
    """
    try:
        # Not model_dump's JSON mode, which would turn NaN inside free-form arguments into null.
        text = json.dumps(spec.model_dump(), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise RequestError(
            f"a {type(spec).__name__} holds a value that JSON cannot say; use plain numbers and text"
        ) from None
    if len(text) > MAX_SPEC_BYTES:
        raise RequestError(
            f"a {type(spec).__name__} of {len(text)} bytes; at most {MAX_SPEC_BYTES} are allowed"
        )
    return text.encode()


def decode_spec(kind: type[S], raw: bytes, *, what: str) -> S:
    """JSON as a specification; `what` names it in the error.

    Raises:
        RequestError: too long, no JSON, or not valid: one line with every fault.
    """
    if len(raw) > MAX_SPEC_BYTES:
        raise RequestError(f"{what}: {len(raw)} bytes of JSON; at most {MAX_SPEC_BYTES} are allowed")
    try:
        spec = kind.model_validate_json(raw)
    except ValidationError as error:
        raise RequestError(one_line(f"{what}: {explain(error)}")) from None
    encode_spec(spec)  # NaN inside free-form arguments passes validation, and no hash could be taken of it
    return spec


def encode_state(state: JobState) -> WatchTrainingResponse:
    """A job's state as a message."""
    return WatchTrainingResponse(
        state=_TO_WIRE[state.state],
        step=state.step,
        steps=state.steps,
        loss=state.loss if state.loss is not None and math.isfinite(state.loss) else None,
        message=state.message,
    )


def decode_state(message: WatchTrainingResponse) -> JobState:
    """A message as a job's state; a loss that is not finite is none, and the text is made fit to print.

    Raises:
        CloudAnswerError: an unknown state.
    """
    state = _FROM_WIRE.get(message.state)
    if state is None:
        raise CloudAnswerError(
            f"the cloud says that a job is in state number {message.state}; expected 1 to {len(_FROM_WIRE)}"
        )
    loss = message.loss if message.HasField("loss") and math.isfinite(message.loss) else None
    return JobState(state, message.step, message.steps, loss, one_line(message.message))


def logits_messages(data: bytes) -> Iterator[FetchLogitsResponse]:
    """Rows of float32, little-endian, in pieces."""
    for start in range(0, len(data), PIECE_BYTES):
        yield FetchLogitsResponse(logits=data[start : start + PIECE_BYTES])


def checkpoint_messages(data: bytes) -> Iterator[FetchCheckpointResponse]:
    """A safetensors file in pieces, the first one with its hash and size."""
    yield FetchCheckpointResponse(
        sha256=hashlib.sha256(data).hexdigest(), size=len(data), data=data[:PIECE_BYTES]
    )
    for start in range(PIECE_BYTES, len(data), PIECE_BYTES):
        yield FetchCheckpointResponse(data=data[start : start + PIECE_BYTES])
