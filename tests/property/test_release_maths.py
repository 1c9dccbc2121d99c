"""Bounding, packing and the message map against naive oracles."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from delta.errors import ConfigError, InputError, PrivacyParameterError, RequestError
from delta.release.bounding import clip, normalise
from delta.release.message import MessageMap, message_matrix
from delta.release.packing import check_padding, pack_bits, unpack_bits

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
messages = st.integers(1, 6).flatmap(
    lambda d: st.lists(st.lists(finite, min_size=d, max_size=d), min_size=1, max_size=4)
)
norms = st.floats(1e-3, 1e3)


def true_norm(values):
    """‖values‖₂ to double precision whatever their size: squares are summed exactly."""
    total = sum(Fraction(v) ** 2 for v in values)
    if total == 0:
        return Fraction(0)
    shift = (total.numerator.bit_length() - total.denominator.bit_length()) // 2
    return Fraction(math.sqrt(float(total / Fraction(4) ** shift))) * Fraction(2) ** shift


@settings(max_examples=150, deadline=None)
@given(messages, norms)
def test_normalise_gives_the_norm_and_keeps_the_direction(rows, bound):
    out = normalise(torch.tensor(rows, dtype=torch.float64), bound)
    assert out.dtype == torch.float64
    for row, got in zip(rows, out.tolist(), strict=True):
        norm = true_norm(row)
        for value, result in zip(row, got, strict=True):
            expected = float(Fraction(bound) * Fraction(value) / norm) if norm else 0.0
            assert result == pytest.approx(expected, rel=1e-12, abs=1e-300)
        if norm:
            assert math.hypot(*got) == pytest.approx(bound, rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(messages, norms)
def test_clip_bounds_the_norm_and_leaves_the_inside_alone(rows, bound):
    out = clip(torch.tensor(rows, dtype=torch.float64), bound)
    for row, got in zip(rows, out.tolist(), strict=True):
        norm = true_norm(row)
        assert math.hypot(*got) <= bound * (1 + 1e-12)
        if norm <= Fraction(bound) * (1 - Fraction(1, 10**12)):
            assert got == pytest.approx(row, rel=1e-15)
        elif norm > bound:
            assert got == pytest.approx([float(Fraction(bound) * Fraction(v) / norm) for v in row], rel=1e-12)


@pytest.mark.parametrize("bound", [normalise, clip])
def test_a_record_is_bounded_alone(bound):
    rows = torch.tensor([[3.0, 4.0], [1e-200, 1e-200], [1e200, -1e200], [0.0, 0.0]], dtype=torch.float64)
    together = bound(rows, 1.0)
    for i in range(len(rows)):
        assert torch.equal(bound(rows[i : i + 1], 1.0)[0], together[i])
    kept = bound(rows.view(4, 1, 2, 1).float()[:1], 1.0)
    assert kept.shape == (1, 1, 2, 1)
    assert kept.dtype == torch.float64


@pytest.mark.parametrize("bound", [normalise, clip])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(bound, bad):
    with pytest.raises(InputError, match="NaN or infinite"):
        bound(torch.tensor([[1.0, 2.0], [3.0, bad]]), 1.0)


@pytest.mark.parametrize("bound", [normalise, clip])
@pytest.mark.parametrize("norm", [0.0, -1.0, float("inf"), float("nan")])
def test_a_wrong_clip_norm_is_refused(bound, norm):
    with pytest.raises(PrivacyParameterError, match="clip_norm"):
        bound(torch.ones(1, 2), norm)


shapes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 9))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 3), shapes, st.integers(0, 2**31), st.booleans())
def test_packing_is_the_naive_one_and_unpacking_its_inverse(n, shape, seed, as_bool):
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (n, *shape), generator=generator, dtype=torch.uint8)
    payload = pack_bits(bits.bool() if as_bool else bits)
    size = math.prod(shape)
    assert payload.shape == (n, -(-size // 8))
    for row, record in zip(payload.tolist(), bits.reshape(n, size).tolist(), strict=True):
        text = "".join(map(str, record)).ljust(8 * len(row), "0")
        assert row == [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]
    assert torch.equal(unpack_bits(payload, shape), bits)
    check_padding(payload, shape)


def test_a_set_padding_bit_is_refused():
    payload = pack_bits(torch.ones(2, 1, 3, 3, dtype=torch.bool))
    assert payload.tolist() == [[255, 128], [255, 128]]
    payload[1, 1] |= 1
    with pytest.raises(RequestError, match="7 bits"):
        check_padding(payload, (1, 3, 3))


@pytest.mark.parametrize(
    "payload", [torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, 2), torch.zeros(2).byte()]
)
def test_a_payload_of_another_kind_is_refused(payload):
    for function in (unpack_bits, check_padding):
        with pytest.raises(RequestError, match=r"uint8\[n, 2\]"):
            function(payload, (1, 3, 3))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.data())
def test_message_maps(channels, data):
    k = data.draw(st.integers(1, channels))
    stream = torch.randn(2, channels, 3, 4, generator=torch.Generator().manual_seed(k))
    torch.testing.assert_close(
        MessageMap("channel-mean", channels=channels)(stream), stream.mean(1, keepdim=True)
    )
    assert torch.equal(MessageMap("all-channels", channels=channels)(stream), stream)
    projection = MessageMap("projection", channels=channels, k=k, seed=4)
    assert projection(stream).shape == (2, k, 3, 4)
    torch.testing.assert_close(projection(stream), torch.einsum("kc,bchw->bkhw", projection.matrix, stream))
    torch.testing.assert_close(projection.matrix @ projection.matrix.T, torch.eye(k), rtol=0, atol=1e-5)
    assert torch.equal(projection.matrix, message_matrix("projection", channels=channels, k=k, seed=4))
    assert set(projection.state_dict()) == {"matrix"}


def test_wrong_message_maps_are_refused():
    for kind, k in (
        ("channel-mean", 2),
        ("all-channels", 3),
        ("projection", None),
        ("projection", 9),
        ("mean", 1),
    ):
        with pytest.raises(ConfigError):
            MessageMap(kind, channels=8, k=k)
    with pytest.raises(InputError, match=r"\[n, 8, h, w\]"):
        MessageMap("channel-mean", channels=8)(torch.zeros(1, 7, 2, 2))
