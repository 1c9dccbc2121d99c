"""Every error that Delta raises on purpose, and how each one crosses a process boundary.

    DeltaError
    ├── ConfigError                 a setting is wrong
    │   └── PrivacyParameterError   an ε, δ, σ or C that no guarantee can be built on
    ├── InputError                  a record or a file is unreadable, or has the wrong shape
    │   └── DataError               a data set lacks classes, labels or files
    ├── ModelError                  a model cannot be built, split or counted
    │   └── SplitError
    ├── BundleError                 a bundle is damaged, incomplete or of another version
    ├── BudgetExceededError         the privacy ledger refuses a release
    ├── LedgerError                 a ledger is damaged, in use, or cannot be written
    ├── CheckpointError             a checkpoint is of another run, or cannot be written
    ├── MethodError
    │   ├── UnknownMethodError
    │   ├── DuplicateMethodError
    │   └── TrainingUnsupportedError
    ├── CloudError                  the other side
    │   ├── CloudUnavailableError   nobody answers
    │   ├── CloudDeadlineError      nobody answers in time
    │   ├── CloudOverloadedError    the queue is full
    │   ├── CloudMismatchError      another protocol version, model, release or mechanism
    │   ├── CloudAnswerError        an answer of the wrong shape or type, or not finite
    │   ├── CloudDeniedError        the cloud does not know who asks, or what is asked for is not theirs
    │   ├── CloudStorageError       the cloud cannot store what was sent
    │   └── CloudTrainingError      a training in the cloud failed or was cancelled
    ├── RequestError                the cloud refuses a request: bytes, shape or schema
    ├── AuditError                  an audit rejects a claim, or misses a fault that was seeded
    └── InternalError               a defect in Delta

A message says what was wrong, what was expected and what to do. It never holds a tensor, a logit or a
label (DESIGN invariant I6): only shapes, names, sizes and counts.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CATALOG",
    "AuditError",
    "BudgetExceededError",
    "BundleError",
    "CheckpointError",
    "CloudAnswerError",
    "CloudDeadlineError",
    "CloudDeniedError",
    "CloudError",
    "CloudMismatchError",
    "CloudOverloadedError",
    "CloudStorageError",
    "CloudTrainingError",
    "CloudUnavailableError",
    "ConfigError",
    "DataError",
    "DeltaError",
    "DuplicateMethodError",
    "ErrorSpec",
    "InputError",
    "InternalError",
    "LedgerError",
    "MethodError",
    "ModelError",
    "PrivacyParameterError",
    "RequestError",
    "SplitError",
    "TrainingUnsupportedError",
    "UnknownMethodError",
    "error_from_wire",
    "spec_of",
]


class DeltaError(Exception):
    """Base of every error raised on purpose; its text is one clear line with what to do."""


class ConfigError(DeltaError):
    """A setting is missing, unknown or out of range."""


class PrivacyParameterError(ConfigError):
    """An ε, δ, σ or C on which no guarantee can be built."""


class InputError(DeltaError):
    """A record or a file cannot be read, or is not of the declared shape."""


class DataError(InputError):
    """A data set lacks classes, labels or files, or fails its checksum."""


class ModelError(DeltaError):
    """A model cannot be built, split or counted."""


class SplitError(ModelError):
    """A model cannot be split at the named module."""


class BundleError(DeltaError):
    """A bundle is damaged, incomplete, of another version, or not what its manifest says."""


class BudgetExceededError(DeltaError):
    """The privacy ledger refuses a release: the subject's budget is spent."""


class LedgerError(DeltaError):
    """A ledger is damaged, held by another process, or cannot be written: nothing may be sent then."""


class CheckpointError(DeltaError):
    """A checkpoint belongs to another run, or cannot be written."""


class MethodError(DeltaError):
    """A method is unknown, registered twice, or cannot do what was asked."""


class UnknownMethodError(MethodError):
    """No method of that name is registered."""


class DuplicateMethodError(MethodError):
    """Two methods claim one name."""


class TrainingUnsupportedError(MethodError):
    """The method has no training step; the message says why."""


class CloudError(DeltaError):
    """The cloud failed or refused; the private side may fall back to its main model."""


class CloudUnavailableError(CloudError):
    """Nobody answers at the cloud's address, or the connection was cut."""


class CloudDeadlineError(CloudError):
    """The cloud did not answer in time."""


class CloudOverloadedError(CloudError):
    """The cloud's queue is full."""


class CloudMismatchError(CloudError):
    """The cloud runs another protocol version, model, release configuration or mechanism."""


class CloudAnswerError(CloudError):
    """The cloud's answer has the wrong shape or type, or is not finite."""


class CloudDeniedError(CloudError):
    """The call carries no valid tenant token, or names something that this tenant does not have."""


class CloudStorageError(CloudError):
    """The cloud has no room for what was sent; what it has acknowledged stays."""


class CloudTrainingError(CloudError):
    """A training job in the cloud failed or was cancelled."""


class RequestError(DeltaError):
    """A request does not match the manifest or the operation's schema."""


class AuditError(DeltaError):
    """An audit rejects what a mechanism claims, or misses a fault that was seeded into it."""


class InternalError(DeltaError):
    """A defect in Delta."""


@dataclass(frozen=True)
class ErrorSpec:
    """How one error class looks from outside.

    Attributes:
        code: stable name on the wire (trailing metadata `delta-error`).
        grpc_status: name of the gRPC status code.
        public_message: what a peer may read when the detail stays local; no tensor contents.
        exit_code: exit status of the `delta` command.
        detail_is_public: whether the message itself may cross the wire (it speaks of public metadata only).
    """

    code: str
    grpc_status: str
    public_message: str
    exit_code: int
    detail_is_public: bool = False


CATALOG: dict[type[DeltaError], ErrorSpec] = {
    DeltaError: ErrorSpec("delta", "UNKNOWN", "the operation failed", 1),
    ConfigError: ErrorSpec("config", "INVALID_ARGUMENT", "a setting is wrong", 2),
    PrivacyParameterError: ErrorSpec(
        "privacy-parameter", "INVALID_ARGUMENT", "a privacy parameter is wrong", 2
    ),
    InputError: ErrorSpec("input", "INVALID_ARGUMENT", "an input cannot be read", 3),
    DataError: ErrorSpec("data", "INVALID_ARGUMENT", "a data set cannot be read", 3),
    ModelError: ErrorSpec("model", "FAILED_PRECONDITION", "a model cannot be built", 4),
    SplitError: ErrorSpec("split", "FAILED_PRECONDITION", "a model cannot be split there", 4),
    BundleError: ErrorSpec("bundle", "FAILED_PRECONDITION", "a bundle cannot be loaded", 5),
    BudgetExceededError: ErrorSpec("budget", "PERMISSION_DENIED", "the privacy budget is spent", 6),
    LedgerError: ErrorSpec("ledger", "FAILED_PRECONDITION", "the privacy ledger cannot be used", 6),
    CheckpointError: ErrorSpec("checkpoint", "FAILED_PRECONDITION", "a checkpoint cannot be used", 5),
    MethodError: ErrorSpec("method", "FAILED_PRECONDITION", "the method cannot do this", 4),
    UnknownMethodError: ErrorSpec("unknown-method", "NOT_FOUND", "no such method or operation", 4, True),
    DuplicateMethodError: ErrorSpec("duplicate-method", "ALREADY_EXISTS", "the method exists already", 4),
    TrainingUnsupportedError: ErrorSpec(
        "training-unsupported", "UNIMPLEMENTED", "the method cannot train", 4
    ),
    CloudError: ErrorSpec("cloud", "UNAVAILABLE", "the cloud failed", 7),
    CloudUnavailableError: ErrorSpec(
        "cloud-unavailable", "UNAVAILABLE", "the cloud is not available", 7, True
    ),
    CloudDeadlineError: ErrorSpec("cloud-deadline", "DEADLINE_EXCEEDED", "the deadline passed", 7, True),
    CloudOverloadedError: ErrorSpec("cloud-overloaded", "RESOURCE_EXHAUSTED", "the queue is full", 7, True),
    CloudMismatchError: ErrorSpec(
        "cloud-mismatch", "FAILED_PRECONDITION", "another version, model or mechanism", 7, True
    ),
    CloudAnswerError: ErrorSpec("cloud-answer", "DATA_LOSS", "an answer is not valid", 7),
    CloudDeniedError: ErrorSpec("cloud-denied", "UNAUTHENTICATED", "the cloud denies this call", 7, True),
    CloudStorageError: ErrorSpec(
        "cloud-storage", "RESOURCE_EXHAUSTED", "the cloud has no room left", 7, True
    ),
    CloudTrainingError: ErrorSpec("cloud-training", "ABORTED", "the training in the cloud failed", 7, True),
    RequestError: ErrorSpec("request", "INVALID_ARGUMENT", "the request does not match the schema", 8, True),
    AuditError: ErrorSpec("audit", "FAILED_PRECONDITION", "an audit rejects the claim", 9),
    InternalError: ErrorSpec("internal", "INTERNAL", "internal error", 70),
}

_BY_CODE = {spec.code: error for error, spec in CATALOG.items()}
# A peer that names no code of ours still gives a status: the nearest error for each.
_BY_STATUS: dict[str, type[DeltaError]] = {
    "UNAVAILABLE": CloudUnavailableError,
    "CANCELLED": CloudUnavailableError,
    "DEADLINE_EXCEEDED": CloudDeadlineError,
    "RESOURCE_EXHAUSTED": CloudOverloadedError,
    "UNIMPLEMENTED": CloudMismatchError,
    "FAILED_PRECONDITION": CloudMismatchError,
    "NOT_FOUND": CloudMismatchError,
    "UNAUTHENTICATED": CloudDeniedError,
    "PERMISSION_DENIED": CloudDeniedError,
    "ABORTED": CloudTrainingError,
    "INVALID_ARGUMENT": RequestError,
}


def spec_of(error: DeltaError | type[DeltaError]) -> ErrorSpec:
    """The catalog entry of an error, or of its nearest ancestor that has one."""
    cls = error if isinstance(error, type) else type(error)
    for ancestor in cls.__mro__:
        if ancestor in CATALOG:
            return CATALOG[ancestor]
    return CATALOG[DeltaError]


def error_from_wire(*, code: str | None, grpc_status: str, message: str) -> DeltaError:
    """The error that a peer's status and `delta-error` code stand for; unknown ones become CloudError."""
    cls = _BY_CODE.get(code or "") or _BY_STATUS.get(grpc_status, CloudError)
    return cls(message)
