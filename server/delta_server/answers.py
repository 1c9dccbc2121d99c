"""What answers hold: how many bytes one may come to, and the room that all streams share for them."""

from __future__ import annotations

from collections.abc import Mapping

from delta.errors import CloudOverloadedError
from delta.methods.schema import Operation

__all__ = ["MESSAGE_SLACK", "AnswerRoom", "answer_bytes"]

MESSAGE_SLACK = 64
"""Bytes of an answer beside its tensors: ids, times and lengths."""
_TENSOR_SLACK = 128  # bytes of a tensor beside its elements and its name: dtype, sizes and lengths


class AnswerRoom:
    """Bytes of answers that all streams together hold: promised to a request, or not read yet.

    Lives on the event loop; so it needs no lock.

    Args:
        limit: most bytes; a request whose answer goes beyond it is refused.

    Attributes:
        held: bytes held now.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def promise(self, size: int) -> None:
        """Hold `size` bytes for an answer to come.

        Raises:
            CloudOverloadedError: they do not fit.
        """
        if self.held + size > self._limit:
            raise CloudOverloadedError(
                f"the answers that clients have not read hold {self.held} of {self._limit} bytes, {size} more "
                "do not fit; read your answers, or send again later"
            )
        self.held += size


def answer_bytes(operation: Operation, sizes: Mapping[str, int], *, bound: int) -> int:
    """Most bytes of an operation's serialised answer.

    Args:
        operation: what was asked.
        sizes: the request's free sizes by name.
        bound: what an answer is taken for whose outputs have free sizes that no input has, bytes.
    """
    total, known = MESSAGE_SLACK, True
    for name, spec in operation.outputs.items():
        size = spec.dtype.itemsize
        for axis in spec.shape:
            if isinstance(axis, int):
                size *= axis
            elif axis in sizes:
                size *= sizes[axis]
            else:
                known = False
        total += size + _TENSOR_SLACK + len(name)
    return total if known else max(total, bound)
