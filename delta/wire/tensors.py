"""Tensors as wire messages, decoded strictly: every size is checked before anything is allocated."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from delta.errors import RequestError
from delta.methods.schema import Operation, TensorSpec
from delta.v1 import tensor_pb2 as pb
from delta.v1.tensor_pb2 import NamedTensor, OperationSchema, TensorSchema
from delta.v1.tensor_pb2 import Tensor as TensorMessage

__all__ = [
    "MAX_RANK",
    "MAX_TENSORS",
    "NamedTensor",
    "OperationSchema",
    "TensorMessage",
    "TensorSchema",
    "decode_named",
    "decode_schema",
    "decode_tensor",
    "encode_named",
    "encode_schema",
    "encode_tensor",
    "tensor_bytes",
    "tensor_from_bytes",
]

MAX_RANK = 8
"""Most axes of a tensor on the wire."""
MAX_TENSORS = 64
"""Most tensors in one message."""
_MAX_BYTES = 2**31 - 1  # protobuf's own bound on a message

_TO_WIRE: dict[torch.dtype, pb.DataType.ValueType] = {
    torch.bool: pb.DATA_TYPE_BOOL,
    torch.uint8: pb.DATA_TYPE_UINT8,
    torch.int8: pb.DATA_TYPE_INT8,
    torch.int16: pb.DATA_TYPE_INT16,
    torch.int32: pb.DATA_TYPE_INT32,
    torch.int64: pb.DATA_TYPE_INT64,
    torch.float16: pb.DATA_TYPE_FLOAT16,
    torch.bfloat16: pb.DATA_TYPE_BFLOAT16,
    torch.float32: pb.DATA_TYPE_FLOAT32,
    torch.float64: pb.DATA_TYPE_FLOAT64,
}
_FROM_WIRE: dict[int, torch.dtype] = {number: dtype for dtype, number in _TO_WIRE.items()}


def tensor_bytes(tensor: Tensor) -> bytes:
    """Elements in C order, little-endian; of any shape and wire dtype."""
    if tensor.dtype == torch.bfloat16:  # numpy has no bfloat16: its bits travel as they are
        tensor = tensor.detach().contiguous().view(torch.int16)
    return _little_endian(tensor.numpy(force=True).tobytes(), tensor.dtype.itemsize)


def tensor_from_bytes(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `tensor_bytes`; `data` must have exactly the bytes of `shape`."""
    if not data:
        return torch.empty(shape, dtype=dtype)
    # A copy: an operation may write into its inputs, and a message's bytes are immutable.
    own = bytearray(_little_endian(data, dtype.itemsize))
    return torch.frombuffer(own, dtype=dtype).view(shape)


def _little_endian(data: bytes, itemsize: int, byteorder: str = sys.byteorder) -> bytes:
    """The host's byte order to the wire's, or back."""
    if byteorder == "little" or itemsize == 1:
        return data
    return np.frombuffer(data, dtype=f"u{itemsize}").byteswap().tobytes()


def encode_tensor(tensor: Tensor) -> TensorMessage:
    """A tensor as a message.

    Raises:
        RequestError: its dtype or rank has no place on the wire.
    """
    number = _TO_WIRE.get(tensor.dtype)
    if number is None:
        raise RequestError(f"dtype {tensor.dtype} cannot be sent; use one of {_names()}")
    if tensor.dim() > MAX_RANK:
        raise RequestError(f"a tensor of {tensor.dim()} axes cannot be sent; at most {MAX_RANK} are allowed")
    return TensorMessage(dtype=number, dims=tensor.shape, data=tensor_bytes(tensor))


def decode_tensor(message: TensorMessage) -> Tensor:
    """A message as a tensor of its own memory. NaN passes: whether it may is the method's affair.

    Raises:
        RequestError: unknown dtype, too many axes, or a length of data that the shape does not have.
    """
    dtype = _FROM_WIRE.get(message.dtype)
    if dtype is None:
        raise RequestError(f"dtype number {message.dtype} is unknown; use one of {_names()}")
    if len(message.dims) > MAX_RANK:
        raise RequestError(f"a tensor of {len(message.dims)} axes; at most {MAX_RANK} are allowed")
    shape = tuple(message.dims)
    expected = extent = dtype.itemsize  # Python integers: the products cannot overflow
    for size in shape:
        expected *= size
        extent *= max(size, 1)  # beside a zero the other sizes still must be sane
    if extent > _MAX_BYTES or expected != len(message.data):
        dims = "x".join(str(size) for size in shape) or "scalar"
        raise RequestError(
            f"{dims} of {str(dtype).removeprefix('torch.')} needs {expected} bytes, got {len(message.data)}"
        )
    if dtype == torch.bool and message.data.translate(None, b"\x00\x01"):
        raise RequestError("a bool tensor holds bytes other than 0 and 1")
    return tensor_from_bytes(message.data, dtype, shape)


def encode_named(tensors: Mapping[str, Tensor]) -> list[NamedTensor]:
    """Tensors by name, as messages in the mapping's order."""
    return [NamedTensor(name=name, tensor=encode_tensor(tensor)) for name, tensor in tensors.items()]


def decode_named(messages: Iterable[NamedTensor]) -> dict[str, Tensor]:
    """Tensors by name.

    Raises:
        RequestError: a name occurs twice or there are too many; or as `decode_tensor`.
    """
    tensors: dict[str, Tensor] = {}
    for message in messages:
        if message.name in tensors:
            raise RequestError("a tensor's name occurs twice in one message; send each once")
        if len(tensors) == MAX_TENSORS:
            raise RequestError(f"a message holds more than {MAX_TENSORS} tensors; send fewer")
        tensors[message.name] = decode_tensor(message.tensor)
    return tensors


def encode_schema(name: str, operation: Operation) -> OperationSchema:
    """The declaration of an operation, without its code."""
    return OperationSchema(
        name=name,
        inputs=[_encode_spec(key, spec) for key, spec in operation.inputs.items()],
        outputs=[_encode_spec(key, spec) for key, spec in operation.outputs.items()],
        batchable=operation.batchable,
    )


def decode_schema(messages: Iterable[TensorSchema]) -> dict[str, TensorSpec]:
    """Declared dtypes and shapes by name.

    Raises:
        RequestError: a dtype is unknown or an axis has neither a size nor a name.
    """
    specs = {}
    for message in messages:
        dtype = _FROM_WIRE.get(message.dtype)
        if dtype is None or len(message.axes) > MAX_RANK:
            raise RequestError(f"a schema has dtype number {message.dtype} and {len(message.axes)} axes")
        shape: list[int | str] = []
        for axis in message.axes:
            extent = axis.WhichOneof("extent")
            if extent is None:
                raise RequestError("a schema has an axis with neither size nor name")
            shape.append(axis.size if extent == "size" else axis.name)
        specs[message.name] = TensorSpec(dtype, tuple(shape))
    return specs


def _encode_spec(name: str, spec: TensorSpec) -> TensorSchema:
    axes = [pb.Axis(name=size) if isinstance(size, str) else pb.Axis(size=size) for size in spec.shape]
    return TensorSchema(name=name, dtype=_TO_WIRE[spec.dtype], axes=axes)


def _names() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in _TO_WIRE)
