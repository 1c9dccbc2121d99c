"""How requests of one kind become the tensors of one call, and its outputs their answers again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from delta.wire.tensors import tensor_bytes, tensor_from_bytes

__all__ = ["Form", "Named", "Packed"]


class Form(ABC):
    """The payloads of one kind of request."""

    @abstractmethod
    def join(self, payloads: Sequence[Any]) -> Mapping[str, Tensor]:
        """The inputs of one call for several payloads, along axis 0."""

    @abstractmethod
    def split(self, outputs: Mapping[str, Tensor], records: Sequence[int]) -> list[Any]:
        """The outputs of that call, a part for each payload of so many records."""


class Packed(Form):
    """Packed bits in, logits out, as bytes: tensors are made once a batch, not once a request.

    Args:
        payload_bytes: packed bytes a record.
    """

    def __init__(self, payload_bytes: int) -> None:
        self._payload_bytes = payload_bytes

    def join(self, payloads: Sequence[bytes]) -> Mapping[str, Tensor]:
        """`bits`, `uint8[n, B]`."""
        data = b"".join(payloads)
        shape = (len(data) // self._payload_bytes, self._payload_bytes)
        return {"bits": tensor_from_bytes(data, torch.uint8, shape)}

    def split(self, outputs: Mapping[str, Tensor], records: Sequence[int]) -> list[bytes]:
        """Bytes of each payload's `logits`."""
        logits = outputs["logits"]
        data, row = tensor_bytes(logits), 4 * logits.shape[1]
        if len(records) == 1:
            return [data]
        parts, start = [], 0
        for count in records:
            parts.append(data[start : start + count * row])
            start += count * row
        return parts


class Named(Form):
    """Tensors by name, both ways; the axis of records is the first."""

    def join(self, payloads: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """Each name's tensors, joined."""
        if len(payloads) == 1:
            return payloads[0]
        return {name: torch.cat([payload[name] for payload in payloads]) for name in payloads[0]}

    def split(self, outputs: Mapping[str, Tensor], records: Sequence[int]) -> list[Mapping[str, Tensor]]:
        """Each payload's rows, on the CPU."""
        outputs = {name: tensor.detach().to("cpu") for name, tensor in outputs.items()}
        if len(records) == 1:
            return [outputs]
        parts: list[Mapping[str, Tensor]] = []
        start = 0
        for count in records:
            parts.append({name: tensor[start : start + count] for name, tensor in outputs.items()})
            start += count
        return parts
