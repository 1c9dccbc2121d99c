"""Strict decoding of tensors, bits and logits, and errors across the wire."""

import tracemalloc

import grpc
import pytest
import torch

from delta.errors import (
    CATALOG,
    BudgetExceededError,
    CloudAnswerError,
    CloudError,
    CloudMismatchError,
    CloudOverloadedError,
    DeltaError,
    RequestError,
)
from delta.transport.base import Binding
from delta.wire.predict import check_bits, decode_logits, encode_bits
from delta.wire.session import check_binding, check_version
from delta.wire.status import as_transport_error, encode_failure, error_from_failure, status_of
from delta.wire.tensors import (
    NamedTensor,
    TensorMessage,
    _little_endian,
    decode_named,
    decode_tensor,
    encode_tensor,
)

FLOAT32, UINT8, BOOL = 9, 2, 1


@pytest.mark.parametrize(
    "message",
    [
        TensorMessage(dtype=FLOAT32, dims=[2], data=b"1234567"),
        TensorMessage(dtype=FLOAT32, dims=[2], data=b"123456789"),
        TensorMessage(dtype=UINT8, dims=[2**63, 2], data=b""),
        TensorMessage(dtype=UINT8, dims=[2**31], data=b"1"),
        TensorMessage(dtype=UINT8, dims=[2**32, 2**32], data=b""),
        TensorMessage(dtype=UINT8, dims=[0, 2**63], data=b""),
        TensorMessage(dtype=UINT8, dims=[0, 2**31, 2**31, 2**31], data=b""),
        TensorMessage(dtype=UINT8, dims=[1] * 9, data=b"1"),
        TensorMessage(dtype=UINT8, dims=[1] * 1000, data=b"1"),
        TensorMessage(dtype=0, dims=[1], data=b"1"),
        TensorMessage(dtype=99, dims=[1], data=b"1"),
        TensorMessage(dtype=BOOL, dims=[2], data=b"\x01\x02"),
        TensorMessage(),
    ],
)
def test_a_wrong_tensor_is_refused_before_it_takes_memory(message):
    tracemalloc.start()
    with pytest.raises(RequestError):
        decode_tensor(message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_nan_and_empty_and_scalar_pass():
    nan = decode_tensor(encode_tensor(torch.tensor([float("nan"), 1.0])))
    assert nan.isnan().tolist() == [True, False]
    assert decode_tensor(encode_tensor(torch.empty(0, 3))).shape == (0, 3)
    assert decode_tensor(encode_tensor(torch.tensor(7, dtype=torch.int64))).item() == 7


def test_a_decoded_tensor_owns_its_memory():
    message = encode_tensor(torch.zeros(4))
    decode_tensor(message).fill_(1)
    assert decode_tensor(message).sum() == 0


def test_dtypes_without_a_place_on_the_wire_are_refused():
    with pytest.raises(RequestError, match="complex64"):
        encode_tensor(torch.zeros(1, dtype=torch.complex64))


def test_a_name_that_occurs_twice_and_too_many_tensors_are_refused():
    one = encode_tensor(torch.zeros(1))
    with pytest.raises(RequestError, match="twice"):
        decode_named([NamedTensor(name="x", tensor=one), NamedTensor(name="x", tensor=one)])
    with pytest.raises(RequestError, match="more than 64"):
        decode_named([NamedTensor(name=str(i), tensor=one) for i in range(65)])


def test_big_endian_hosts_swap_bytes():
    assert _little_endian(b"\x01\x02\x03\x04", 2, "big") == b"\x02\x01\x04\x03"
    assert _little_endian(b"\x01\x02\x03\x04", 4, "little") == b"\x01\x02\x03\x04"
    assert _little_endian(b"\x01\x02", 1, "big") == b"\x01\x02"


@pytest.mark.parametrize(
    ("data", "count", "pad_bits"),
    [
        (b"", 0, 0),
        (b"1", 1, 0),
        (b"123", 2, 0),
        (b"1234", 5, 0),
        (b"\x00\x00\x00\x01", 2, 4),
        (b"\x00\x08", 1, 4),
    ],
)
def test_wrong_bits_are_refused(data, count, pad_bits):
    with pytest.raises(RequestError):
        check_bits(data, count=count, payload_bytes=2, max_records=4, pad_bits=pad_bits)


def test_padding_is_checked_in_the_last_byte_of_each_record_only():
    data = b"\xff\xf0\xff\xf0"
    assert check_bits(data, count=2, payload_bytes=2, max_records=4, pad_bits=4) == data


def test_logits_of_another_size_are_refused_and_nan_passes():
    with pytest.raises(CloudAnswerError, match="expected 24"):
        decode_logits(bytes(20), count=2, classes=3)
    assert decode_logits(b"\x00\x00\xc0\x7f", count=1, classes=1).isnan().all()


def test_bits_of_another_dtype_or_shape_are_refused():
    for bits in (
        torch.zeros(2, 3),
        torch.zeros(2, 4, dtype=torch.uint8),
        torch.zeros(0, 3, dtype=torch.uint8),
    ):
        with pytest.raises(RequestError, match=r"uint8\[n, 3\]"):
            encode_bits(bits, payload_bytes=3)


def test_a_mismatch_names_what_differs():
    served = Binding("m", "a" * 64, "b" * 64, "x/1")
    check_binding(Binding("", "a" * 64, "b" * 64, "x/1"), served)
    for asked, name in (
        (Binding("m", "c" * 64, "b" * 64, "x/1"), "cloud_hash"),
        (Binding("m", "a" * 64, "", "x/1"), "release_hash"),
        (Binding("m", "a" * 64, "b" * 64, "x/2"), "mechanism"),
    ):
        with pytest.raises(CloudMismatchError, match=f"^{name} differs"):
            check_binding(asked, served)
    with pytest.raises(CloudMismatchError, match="speaks 2, this side 1"):
        check_version(2, peer="cloud")


@pytest.mark.parametrize("kind", CATALOG)
def test_every_error_has_a_status_and_keeps_private_text_at_home(kind):
    secret = "logits 0.125 -3.5"
    status, text, metadata = status_of(kind(secret))
    assert isinstance(status, grpc.StatusCode)
    assert metadata == (("delta-error", CATALOG[kind].code),)
    assert (secret in text) == CATALOG[kind].detail_is_public
    back = error_from_failure(encode_failure(kind(secret)))
    assert isinstance(back, (CloudError, RequestError))
    if issubclass(kind, (CloudError, RequestError)):
        assert type(back) is kind


def test_a_cloud_cannot_raise_an_error_that_is_not_the_clouds():
    assert type(as_transport_error(BudgetExceededError("x"))) is CloudError
    assert type(as_transport_error(ValueError("secret"))) is CloudError
    assert "secret" not in str(as_transport_error(ValueError("secret")))
    assert type(as_transport_error(DeltaError("x"))) is CloudError
    assert type(as_transport_error(CloudOverloadedError("x"))) is CloudOverloadedError


def test_a_peers_text_is_made_fit_to_print():
    from delta.wire.status import Failure

    error = error_from_failure(Failure(code="request", message="a\nb\x1b[31m" + "x" * 9999))
    assert "\n" not in str(error)
    assert "\x1b" not in str(error)
    assert len(str(error)) <= 300
