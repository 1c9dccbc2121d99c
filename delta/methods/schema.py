"""Schemas of the operations that a cloud half offers: names, dtypes and shapes, checked on both sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from delta.errors import InternalError, RequestError, UnknownMethodError

__all__ = ["PREDICT", "CloudHalf", "Operation", "TensorSpec", "check_tensors", "is_predict", "run_operation"]

PREDICT = "predict"
"""Name of the operation that the typed `Predict` and `PredictStream` calls serve."""


@dataclass(frozen=True)
class TensorSpec:
    """The declared dtype and shape of one tensor.

    Attributes:
        dtype: exact element type.
        shape: one entry an axis; a string names a free size of at least 1, equal wherever the name recurs.
    """

    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        sizes = ", ".join(str(size) for size in self.shape)
        return f"{str(self.dtype).removeprefix('torch.')}[{sizes}]"


@dataclass(frozen=True)
class Operation:
    """One named operation of a cloud half.

    Attributes:
        inputs: schema of the tensors that come in.
        outputs: schema of the tensors that go back.
        run: the operation itself; called with tensors that match `inputs`.
        batchable: records lie along axis 0, named "n", of every tensor, and a record's answer does not
            depend on its neighbours: the server may join requests of several clients into one call.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    run: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    batchable: bool = False


class CloudHalf(Protocol):
    """The public side of a method: named operations on tensors. Servers know no more of it."""

    @property
    def operations(self) -> Mapping[str, Operation]:
        """The operations by name."""
        ...


def check_tensors(
    tensors: Mapping[str, Tensor], specs: Mapping[str, TensorSpec], *, what: str
) -> dict[str, int]:
    """Check tensors against a schema.

    Args:
        tensors: tensors by name.
        specs: what was declared.
        what: how a message names them, such as "predict: input".

    Returns:
        The free sizes by name.

    Raises:
        RequestError: names, dtypes, ranks or sizes differ.
    """
    if set(tensors) != set(specs):
        raise RequestError(f"{what}: expected tensors {sorted(specs)}, got {sorted(tensors)}")
    sizes: dict[str, int] = {}
    for name, spec in specs.items():
        tensor = tensors[name]
        fits = tensor.dtype == spec.dtype and tensor.dim() == len(spec.shape)
        if fits:
            for size, expected in zip(tensor.shape, spec.shape, strict=True):
                wanted = sizes.setdefault(expected, size) if isinstance(expected, str) else expected
                fits = fits and size == wanted and size > 0
        if not fits:
            got = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
            raise RequestError(f"{what} {name!r}: expected {spec}, got {got}")
    return sizes


def is_predict(operation: Operation) -> bool:
    """Whether an operation has the schema `bits uint8[n, B] → logits float32[n, classes]`."""
    bits, logits = operation.inputs.get("bits"), operation.outputs.get("logits")
    return (
        bits is not None
        and logits is not None
        and len(operation.inputs) == len(operation.outputs) == 1
        and (bits.dtype, logits.dtype) == (torch.uint8, torch.float32)
        and len(bits.shape) == len(logits.shape) == 2
        and bits.shape[0] == logits.shape[0] == "n"
        and isinstance(bits.shape[1], int)
        and isinstance(logits.shape[1], int)
        and operation.batchable
    )


def run_operation(half: CloudHalf, op: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run one operation, its inputs and outputs checked against the schema.

    Raises:
        UnknownMethodError: there is no such operation.
        RequestError: the inputs do not match the schema.
        InternalError: the outputs do not.
    """
    operation = half.operations.get(op)
    if operation is None:
        raise UnknownMethodError(f"no operation {op!r}; this model offers {sorted(half.operations)}")
    check_tensors(tensors, operation.inputs, what=f"{op}: input")
    with torch.inference_mode():
        outputs = dict(operation.run(tensors))
    try:
        check_tensors(outputs, operation.outputs, what=f"{op}: output")
    except RequestError as error:
        raise InternalError(str(error)) from None
    return outputs
