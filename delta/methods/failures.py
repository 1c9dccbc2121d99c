"""What a failure of the cloud is called, in one word that stays on the private side."""

from __future__ import annotations

from delta.errors import (
    BudgetExceededError,
    CloudAnswerError,
    CloudDeadlineError,
    CloudError,
    CloudMismatchError,
    CloudOverloadedError,
    CloudUnavailableError,
    RequestError,
)

__all__ = ["reason_of"]

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (CloudDeadlineError, "deadline"),
    (CloudOverloadedError, "overloaded"),
    (CloudMismatchError, "mismatch"),
    (CloudAnswerError, "bad-answer"),
    (CloudUnavailableError, "unreachable"),
    (CloudError, "unreachable"),
    (RequestError, "refused"),
    (BudgetExceededError, "budget"),
)


def reason_of(failure: Exception | None) -> str:
    """The `reason` of a `Prediction` made without the cloud; no failure means that there was no cloud."""
    if failure is None:
        return "no-cloud"
    return next((reason for kind, reason in _REASONS if isinstance(failure, kind)), "unreachable")
