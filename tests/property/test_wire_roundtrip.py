"""Every tensor that may cross the wire comes back bit for bit; what is cut or grown does not."""

import hypothesis.strategies as st
import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import given, settings

from delta.errors import RequestError
from delta.wire.tensors import TensorMessage, decode_tensor, encode_tensor

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]
SHAPES = st.lists(st.integers(0, 4), max_size=8).filter(lambda shape: torch.Size(shape).numel() <= 256)


def _tensor(dtype, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel() * dtype.itemsize
    data = torch.randint(
        0, 2 if dtype == torch.bool else 256, (size,), generator=generator, dtype=torch.uint8
    )
    return data.view(dtype).reshape(shape)


def _bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@settings(deadline=None)
@given(st.sampled_from(DTYPES), SHAPES, st.integers(0, 2**32))
def test_round_trip_keeps_every_bit(dtype, shape, seed):
    tensor = _tensor(dtype, shape, seed)
    message = TensorMessage.FromString(encode_tensor(tensor).SerializeToString())
    back = decode_tensor(message)
    assert (back.dtype, back.shape) == (dtype, tensor.shape)
    assert _bytes(back) == _bytes(tensor)


@settings(deadline=None)
@given(st.sampled_from(DTYPES), st.integers(0, 2**32))
def test_views_are_sent_in_c_order(dtype, seed):
    tensor = _tensor(dtype, [3, 4], seed).mT
    assert _bytes(decode_tensor(encode_tensor(tensor))) == _bytes(tensor)


@settings(deadline=None)
@given(st.sampled_from(DTYPES), SHAPES, st.integers(1, 9))
def test_data_of_another_length_is_refused(dtype, shape, extra):
    message = encode_tensor(_tensor(dtype, shape, 0))
    data = message.data
    with pytest.raises(RequestError):
        decode_tensor(TensorMessage(dtype=message.dtype, dims=message.dims, data=data + bytes(extra)))
    if data:
        with pytest.raises(RequestError):
            decode_tensor(TensorMessage(dtype=message.dtype, dims=message.dims, data=data[:-1]))


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_a_tensor_or_refused(raw):
    try:
        message = TensorMessage.FromString(raw)
    except DecodeError:
        return
    try:
        tensor = decode_tensor(message)
    except RequestError:
        return
    assert tensor.numel() * tensor.element_size() == len(message.data)
