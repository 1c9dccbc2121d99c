"""A file of weights from a cloud: how large it may be, and what its header must say before it is parsed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from delta.errors import CloudAnswerError
from delta.training.weights import check_weights

__all__ = ["ExpectedWeights"]

_SLACK_BYTES = 64 * 1024  # for metadata, and for a header that is written in another way
_LENGTH_BYTES = 8  # of the header, at the start of the file
_METADATA = "__metadata__"


class ExpectedWeights:
    """What a safetensors file must hold to be taken.

    Args:
        like: weights of the model that the file is for; only names, shapes and types matter.

    Attributes:
        most_bytes: size of the file at most.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self._like = like
        self._declared = _declarations(like)
        self._payload_bytes = sum(tensor.nbytes for tensor in like.values())
        self.most_bytes = _LENGTH_BYTES + self._header_bytes() + self._payload_bytes + _SLACK_BYTES

    def parse(self, data: bytes) -> dict[str, Tensor]:
        """A file as weights by name; not yet checked to be finite.

        Raises:
            CloudAnswerError: it is no safetensors file, or not one of these weights.
        """
        self._check_header(data)
        try:
            weights = load_tensors(data)
        # Each of these comes of some header; those of overflows are neither of the first two.
        except (SafetensorError, LookupError, ValueError, TypeError, RuntimeError, OverflowError):
            raise _no_file() from None
        check_weights(weights, like=self._like)  # as read, whatever was declared
        return weights

    def _check_header(self, data: bytes) -> None:
        """Refuse a file by its header, before memory is taken for what it declares."""
        end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
        if len(data) - end != self._payload_bytes:
            raise CloudAnswerError(
                f"the cloud's weights are a file of {len(data)} bytes whose header ends at {end}; expected "
                f"{self._payload_bytes} bytes behind it"
            )
        try:
            header = json.loads(data[_LENGTH_BYTES:end], object_pairs_hook=_each_once)
        except (ValueError, RecursionError):
            raise _no_file() from None
        if not isinstance(header, dict):
            raise _no_file()
        header.pop(_METADATA, None)
        found = {name: _declaration(entry) for name, entry in header.items()}
        if found != self._declared:
            raise CloudAnswerError(
                "the cloud's weights are not those of the declared model: names, shapes or types differ"
            )

    def _header_bytes(self) -> int:
        offset, header = 0, {}
        for name in sorted(self._like):
            dtype, shape = self._declared[name]
            offsets = [offset, offset + self._like[name].nbytes]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            offset = offsets[1]
        return len(json.dumps(header))


def _declarations(like: Mapping[str, Tensor]) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each tensor as a header says them; safetensors itself names the types."""
    blank = dump_tensors({name: torch.empty(0, dtype=tensor.dtype) for name, tensor in like.items()})
    end = _LENGTH_BYTES + int.from_bytes(blank[:_LENGTH_BYTES], "little")
    header = json.loads(blank[_LENGTH_BYTES:end])
    return {name: (header[name]["dtype"], list(tensor.shape)) for name, tensor in like.items()}


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # two readers might take two different ones
        raise ValueError("a name occurs twice")
    return found


def _declaration(entry: object) -> object:
    return (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else None


def _no_file() -> CloudAnswerError:
    return CloudAnswerError("the cloud's weights are not a safetensors file")
