"""Clouds that note all that reaches them, and answer as a script says: honestly, badly, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from delta.errors import (
    CloudAnswerError,
    CloudDeadlineError,
    CloudError,
    CloudMismatchError,
    CloudOverloadedError,
    CloudUnavailableError,
    RequestError,
)
from delta.methods.schema import CloudHalf, run_operation
from delta.transport.base import Answer, Transport
from delta.transport.futures import fail, resolve


@dataclass(frozen=True)
class Sent:
    """One submitted request, its tensors as bytes."""

    op: str
    deadline_s: float
    tensors: tuple[tuple[str, str, tuple[int, ...], bytes], ...]


def sent_of(op: str, tensors: Mapping[str, Tensor], deadline_s: float) -> Sent:
    """What a request says, bit for bit."""
    rows = (
        (name, str(t.dtype), tuple(t.shape), t.detach().contiguous().numpy().tobytes())
        for name, t in sorted(tensors.items())
    )
    return Sent(op, deadline_s, tuple(rows))


Outcome = Answer | Exception | None
Script = Callable[[int, str, Mapping[str, Tensor]], "Outcome | Later"]
"""`(number of the request, operation, tensors) → answer`, an error, or nothing at all."""


@dataclass(frozen=True)
class Later:
    """An outcome that comes after some seconds."""

    seconds: float
    outcome: Answer | Exception


def _settle(future: Future[Answer], outcome: Answer | Exception) -> None:
    if isinstance(outcome, Answer):
        resolve(future, outcome)
    else:
        fail(future, outcome)


class ScriptedCloud:
    """A transport whose other end is a script; `transcript` holds all that was submitted, in order.

    Unlike the library's transports it checks nothing: what it returns is as hostile as the script.

    Args:
        script: what it answers.
        keeps_deadlines: whether an answer that never comes is told at the deadline, as a transport must.
    """

    def __init__(self, script: Script, *, keeps_deadlines: bool = True) -> None:
        self.transcript: list[Sent] = []
        self.requires_grad = False
        self.before: Callable[[], None] = lambda: None
        self._script = script
        self._keeps_deadlines = keeps_deadlines
        self._timers: list[threading.Timer] = []

    @property
    def handshake_bytes(self) -> tuple[int, int]:
        return (0, 0)

    def submit(self, op: str, tensors: Mapping[str, Tensor], *, deadline_s: float) -> Future[Answer]:
        self.before()
        self.requires_grad |= any(t.requires_grad for t in tensors.values())
        self.transcript.append(sent_of(op, tensors, deadline_s))
        future: Future[Answer] = Future()
        outcome = self._script(len(self.transcript) - 1, op, tensors)
        if outcome is None and self._keeps_deadlines:
            outcome = Later(deadline_s, CloudDeadlineError("no answer in time"))
        if isinstance(outcome, Later):
            timer = threading.Timer(outcome.seconds, _settle, (future, outcome.outcome))
            timer.start()
            self._timers.append(timer)
        elif outcome is not None:
            _settle(future, outcome)
        return future

    def close(self) -> None:
        for timer in self._timers:
            timer.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Recorded:
    """Another transport, with a transcript of what was submitted to it."""

    def __init__(self, inner: Transport) -> None:
        self.transcript: list[Sent] = []
        self._inner = inner

    @property
    def handshake_bytes(self) -> tuple[int, int]:
        return self._inner.handshake_bytes

    def submit(self, op: str, tensors: Mapping[str, Tensor], *, deadline_s: float) -> Future[Answer]:
        self.transcript.append(sent_of(op, tensors, deadline_s))
        return self._inner.submit(op, tensors, deadline_s=deadline_s)

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def honest(half: CloudHalf) -> Script:
    """What a cloud should do."""

    def script(number: int, op: str, tensors: Mapping[str, Tensor]) -> Outcome:
        return Answer(run_operation(half, op, dict(tensors)), cloud_ms=0.5, bytes_up=100, bytes_down=40)

    return script


def _tampered(half: CloudHalf, change: Callable[[Tensor], Tensor], **fields: float) -> Script:
    """An honest answer, changed."""

    def script(number: int, op: str, tensors: Mapping[str, Tensor]) -> Outcome:
        outputs = run_operation(half, op, dict(tensors))
        return Answer(
            {name: change(t.clone()) for name, t in outputs.items()},
            cloud_ms=fields.get("cloud_ms", 0.5),
            bytes_up=100,
            bytes_down=40,
        )

    return script


def _adaptive(half: CloudHalf) -> Script:
    """Answers by what the release looks like: the parity of its bits chooses between truth and lies."""

    def script(number: int, op: str, tensors: Mapping[str, Tensor]) -> Outcome:
        outputs = run_operation(half, op, dict(tensors))
        odd = sum(int(t.double().sum()) for t in tensors.values()) % 2
        return Answer({n: -1e4 * t if odd else t for n, t in outputs.items()}, 0.5, 100, 40)

    return script


def _replaying(half: CloudHalf) -> Script:
    """Every answer is the one before it, where the shapes allow that."""
    last: dict[str, Answer] = {}
    inner = honest(half)

    def script(number: int, op: str, tensors: Mapping[str, Tensor]) -> Outcome:
        now = inner(number, op, tensors)
        assert isinstance(now, Answer)
        before, last[op] = last.get(op, now), now
        return before

    return script


def _recovering(half: CloudHalf, failures: int) -> Script:
    """UNAVAILABLE some times, then honest."""
    inner = honest(half)

    def script(number: int, op: str, tensors: Mapping[str, Tensor]) -> Outcome | Later:
        return CloudUnavailableError("nobody answers") if number < failures else inner(number, op, tensors)

    return script


def _late(half: CloudHalf, seconds: float) -> Script:
    inner = honest(half)

    def script(number: int, op: str, tensors: Mapping[str, Tensor]) -> Later:
        outcome = inner(number, op, tensors)
        assert isinstance(outcome, Answer)
        return Later(seconds, outcome)

    return script


def _failing(error: Exception) -> Script:
    return lambda number, op, tensors: error


def spoilt(t: Tensor, value: float) -> Tensor:
    """The tensor full of a value that is not finite; of integers: of their largest."""
    return torch.full_like(t, value if t.is_floating_point() else torch.iinfo(t.dtype).max)


def _one_spoilt(t: Tensor) -> Tensor:
    return torch.cat([spoilt(t[..., :1], torch.inf), t[..., 1:]], dim=-1)


def hostile_clouds(half: CloudHalf) -> dict[str, Script]:
    """Every way to misbehave that this suite knows, by name."""
    return {
        "NaN": _tampered(half, lambda t: spoilt(t, torch.nan)),
        "one infinity": _tampered(half, _one_spoilt),
        "huge": _tampered(half, lambda t: t * 1e30),
        "reversed": _tampered(half, lambda t: -t),
        "garbage": _tampered(half, lambda t: torch.empty_like(t).random_(-9, 9)),
        "wrong shape": _tampered(half, lambda t: t[..., :-1]),
        "one record more": _tampered(half, lambda t: torch.cat([t, t])),
        "wrong dtype": _tampered(half, lambda t: t.to(torch.float64)),
        "no tensors": lambda number, op, tensors: Answer({}, 0.5, 100, 40),
        "its time is NaN": _tampered(half, lambda t: t, cloud_ms=float("nan")),
        "its time is negative": _tampered(half, lambda t: t, cloud_ms=-1.0),
        "adaptive": _adaptive(half),
        "replayed": _replaying(half),
        "recovers": _recovering(half, 2),
        "late": _late(half, 0.01),
        "never": lambda number, op, tensors: None,
        "overloaded": _failing(CloudOverloadedError("the queue is full")),
        "mismatch": _failing(CloudMismatchError("another model")),
        "deadline": _failing(CloudDeadlineError("too late")),
        "bad answer": _failing(CloudAnswerError("not finite")),
        "some error": _failing(CloudError("it failed")),
        "refused": _failing(RequestError("the request does not match")),
    }
