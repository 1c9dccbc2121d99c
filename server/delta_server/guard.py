"""Around every call: errors as gRPC statuses, and the deadline that a unary call must have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import grpc

from delta.errors import DeltaError, InternalError, RequestError
from delta.wire.status import status_of
from delta_server.log import event

__all__ = ["Context", "deadline_of", "guarded"]

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")
_NO_DEADLINE_S = 1e9  # a call without a deadline reports some 9.2e18 s
_ROUNDING_S = 1.0  # gRPC rounds deadlines up, and clocks differ: who asks for the longest one gets it


async def guarded(context: Context, run: Callable[[], Awaitable[T]]) -> T:
    """Run a call, and end it with the status of whatever error it raises."""
    try:
        return await run()
    except DeltaError as error:
        refusal = error
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except Exception as error:  # its text may hold contents of a request (I6)
        if context.cancelled() or context.done():
            raise asyncio.CancelledError from None
        event("call failed", kind=type(error).__name__)
        refusal = InternalError("a defect in the server; see its log")
    status, text, metadata = status_of(refusal)
    event("call refused", status=status.name, reason=metadata[0][1])
    await context.abort(status, text, metadata)
    raise AssertionError  # abort never returns


def deadline_of(context: Context, *, longest_s: float) -> float:
    """Seconds that are left to a unary call.

    Raises:
        RequestError: it has no deadline, or one later than `longest_s`.
    """
    remaining = cast("float | None", context.time_remaining())
    if remaining is None or remaining > _NO_DEADLINE_S:
        raise RequestError(f"the call has no deadline; set one of at most {longest_s:g} s")
    if remaining > longest_s + _ROUNDING_S:
        raise RequestError(f"the call's deadline is too long; set one of at most {longest_s:g} s")
    return float(remaining)
