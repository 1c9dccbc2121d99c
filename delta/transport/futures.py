"""Settling futures that several threads may settle: whoever comes first wins, the others are told."""

from __future__ import annotations

from concurrent.futures import Future, InvalidStateError

from delta.transport.base import Answer

__all__ = ["fail", "failed", "resolve"]


def resolve(future: Future[Answer], answer: Answer) -> bool:
    """Set the answer; false where the future was cancelled or settled before."""
    try:
        future.set_result(answer)
    except InvalidStateError:
        return False
    return True


def fail(future: Future[Answer], error: BaseException) -> bool:
    """Set the error; false where the future was cancelled or settled before."""
    try:
        future.set_exception(error)
    except InvalidStateError:
        return False
    return True


def failed(error: BaseException) -> Future[Answer]:
    """A future that has failed already."""
    future: Future[Answer] = Future()
    future.set_exception(error)
    return future
