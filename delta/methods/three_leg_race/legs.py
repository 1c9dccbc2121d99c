"""The cloud's leg of a convolution: asked of a cloud, its answers held to what they can be, or run here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Protocol

import torch
from torch import Tensor

from delta.errors import CloudAnswerError
from delta.methods.asking import Call, checked_answer
from delta.methods.three_leg_race.cloud import forward_op, given_op, gradient_op
from delta.methods.three_leg_race.geometry import Geometry
from delta.transport.base import Answer

__all__ = ["AskedLeg", "CloudLeg", "LocalLeg"]

_REQUEST_BYTES = 24 * 2**20
"""Of the records in one request, or in its answer."""
_SLACK = 1e-2
"""Relative, for the rounding of honest answers; accelerators round factors to 11 bits."""


class CloudLeg(Protocol):
    """Convolves what `outbound` has made."""

    def convolve(
        self, index: int, geometry: Geometry, request: Mapping[str, Tensor], weight: Tensor
    ) -> Callable[[], Tensor]:
        """Begin a layer; what is returned waits for the answer, `[n, o, h', w']`."""
        ...

    def gradients(
        self, index: int, geometry: Geometry, request: Mapping[str, Tensor], weight: Tensor
    ) -> Callable[[], tuple[Tensor, Tensor]]:
        """Begin a layer's way back; what is returned waits for the gradients of input and weights."""
        ...


class LocalLeg:
    """No cloud: the same arithmetic here, for a look at ranks and memory."""

    def convolve(
        self, index: int, geometry: Geometry, request: Mapping[str, Tensor], weight: Tensor
    ) -> Callable[[], Tensor]:
        """Run the layer."""
        answer = geometry.convolve(request["x"], weight)
        return lambda: answer

    def gradients(
        self, index: int, geometry: Geometry, request: Mapping[str, Tensor], weight: Tensor
    ) -> Callable[[], tuple[Tensor, Tensor]]:
        """Run the layer's way back."""
        answer = geometry.gradients(request["dy"], request["x"], weight)
        return lambda: answer


class AskedLeg:
    """A cloud. An answer larger than the request and the weights allow is refused (I4).

    Args:
        call: within which it is asked.
    """

    def __init__(self, call: Call) -> None:
        self._call = call

    def convolve(
        self, index: int, geometry: Geometry, request: Mapping[str, Tensor], weight: Tensor
    ) -> Callable[[], Tensor]:
        """Ask; with the request's own weights where it holds some.

        Raises:
            CloudError: there is no cloud; when waited for, as `Call.ask` and for an answer that cannot be.
        """
        op = given_op(index) if "w" in request else forward_op(index)
        parts, futures = self._submitted(op, geometry, request)

        def wait() -> Tensor:
            answers = self._call.collect(futures)
            reach = weight.abs().sum((1, 2, 3)).cpu()  # of an output channel, with inputs within ±1
            found = []
            for answer, part in zip(answers, parts, strict=True):
                shape = (len(part["x"]), *geometry.output)
                y = checked_answer(answer.tensors, "y", shape=shape, dtype=torch.float32)
                _hold(y, _largest(part["x"])[:, None] * reach, op)
                found.append(y)
            return torch.cat(found).to(weight.device)

        return wait

    def gradients(
        self, index: int, geometry: Geometry, request: Mapping[str, Tensor], weight: Tensor
    ) -> Callable[[], tuple[Tensor, Tensor]]:
        """Ask.

        Raises:
            CloudError: as `convolve`.
        """
        op = gradient_op(index)
        parts, futures = self._submitted(op, geometry, request)

        def wait() -> tuple[Tensor, Tensor]:
            answers = self._call.collect(futures)
            reach = weight.abs().sum((0, 2, 3)).cpu()  # of an input channel of a group
            reach = reach.repeat(geometry.groups)
            found = []
            total = torch.zeros(geometry.weight)
            for answer, part in zip(answers, parts, strict=True):
                x, dy = part["x"], part["dy"]
                dx = checked_answer(answer.tensors, "dx", shape=x.shape, dtype=torch.float32)
                dw = checked_answer(answer.tensors, "dw", shape=geometry.weight, dtype=torch.float32)
                _hold(dx, _largest(dy)[:, None] * reach, op)
                _hold(dw, (_largest(x)[:, None] * dy.abs().sum((2, 3))).sum(0), op)
                found.append(dx)
                total += dw
            return torch.cat(found).to(weight.device), total.to(weight.device)

        return wait

    def _submitted(
        self, op: str, geometry: Geometry, request: Mapping[str, Tensor]
    ) -> tuple[list[dict[str, Tensor]], list[Future[Answer]]]:
        """The request in parts of a bearable weight, and the parts under way; weights go with each."""
        incoming = math.prod(geometry.input) + ("dy" in request) * math.prod(geometry.output)
        record = 4 * max(incoming, math.prod(geometry.output))
        size = max(1, _REQUEST_BYTES // record)
        parts = [
            {name: t if name == "w" else t[start : start + size] for name, t in request.items()}
            for start in range(0, len(request["x"]), size)
        ]
        return parts, [self._call.submit(op, part) for part in parts]


def _largest(x: Tensor, axes: int = 1) -> Tensor:
    """Magnitude of the largest value over all but the first axes, NaN where one is."""
    flat = x.flatten(axes)
    return torch.maximum(flat.amax(-1), -flat.amin(-1))  # many times faster than a norm


def _hold(answer: Tensor, bound: Tensor, op: str) -> None:
    """Refuse an answer with a value beyond its bound, which lies over the answer's first axes.

    Raises:
        CloudAnswerError: there is one.
    """
    if not bool((_largest(answer, bound.dim()) <= bound * (1 + _SLACK)).all()):
        raise CloudAnswerError(f"the cloud's answer to {op!r} is larger than its input and weights allow")
