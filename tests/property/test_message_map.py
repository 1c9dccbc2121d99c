"""A learned message map against a convolution written out, alone and in any batch, and in MACs."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from delta.decomposition.basis import pca_basis
from delta.decomposition.decomposer import Decomposer
from delta.errors import ConfigError, InputError
from delta.models.fixed_stem import FixedStem
from delta.models.macs import decomposition_macs
from delta.release.components import component_hash, computation_hash
from delta.release.config import (
    BasisConfig,
    Component,
    CropConfig,
    InputSpec,
    MessageConfig,
    Provenance,
    ReleaseConfig,
)
from delta.release.ids import RecordIds
from delta.release.message import MessageMap, message_in_parts, message_of
from delta.release.noise import NoiseKey
from delta.release.packing import unpack_bits
from delta.release.releaser import Releaser

FREE = Provenance(kind="data-independent")
PRIVATE = Provenance(kind="private")


def written_out(stream: torch.Tensor, matrix: torch.Tensor, stride: int) -> torch.Tensor:
    """The convolution, one square of one record at a time, in float64."""
    n, c, h, w = stream.shape
    out = torch.empty(n, len(matrix), h // stride, w // stride, dtype=torch.float64)
    kernel = matrix.double().view(len(matrix), c, stride, stride)
    for i in range(n):
        for row in range(h // stride):
            for column in range(w // stride):
                square = stream[
                    i, :, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride
                ]
                for j in range(len(matrix)):
                    out[i, j, row, column] = (kernel[j] * square.double()).sum()
    return out


def decomposer_of(phi: torch.Tensor, *, rank: int, kind: str) -> Decomposer:
    _, channels, height, width = phi.shape
    basis = pca_basis(phi.float(), rank) if kind == "pca" else None
    return Decomposer(
        channels=channels, height=height, width=width, rank=rank, block=4, keep=2, kind=kind, basis=basis
    )


@st.composite
def cases(draw):
    channels = draw(st.integers(2, 6))
    height, width = 4 * draw(st.integers(1, 2)), 4 * draw(st.integers(1, 2))
    rank, offload = draw(st.integers(1, channels)), draw(st.sampled_from(["residual", "principal"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    phi = torch.randn(draw(st.integers(2, 4)), channels, height, width, generator=generator)
    stride = draw(st.sampled_from([1, 2, 4] if offload == "residual" else [1, 2]))
    source = channels if offload == "residual" else rank
    k = draw(st.integers(1, min(7, source * stride**2)))
    matrix = torch.randn(k, source * stride**2, generator=generator)
    message = MessageMap("learned", channels=source, k=k, stride=stride, matrix=matrix)
    decomposer = decomposer_of(phi, rank=rank, kind=draw(st.sampled_from(["pca", "svd"])))
    return phi, decomposer, message, offload


@settings(max_examples=40, deadline=None)
@given(cases())
def test_the_folded_map_is_the_convolution_of_the_stream(case):
    phi, decomposer, message, offload = case
    parts = decomposer(phi)
    stream = decomposer.residual(phi, parts) if offload == "residual" else parts.principal
    slow = written_out(stream, message.matrix, message.stride)
    found, mapped = message_of(phi, decomposer=decomposer, message=message, offload=offload)
    slack = 2e-6 * float(phi.abs().max()) * float(message.matrix.abs().sum(1).max() + 1)
    assert tuple(mapped.shape[1:]) == message.shape_of(tuple(stream.shape[1:]))
    torch.testing.assert_close(mapped.double(), slow, rtol=0, atol=slack)
    torch.testing.assert_close(found.principal, parts.principal, rtol=0, atol=slack)
    sure = slow.abs() > slack  # nearer to zero, the last digit decides
    assert torch.equal(mapped[sure] >= 0, slow[sure] >= 0)
    torch.testing.assert_close(message(stream).double(), slow, rtol=0, atol=slack)
    some = [phi[:1], phi[1:]]
    main, again = message_in_parts(some, decomposer=decomposer, message=message, offload=offload)
    torch.testing.assert_close(again, mapped, rtol=0, atol=slack)
    torch.testing.assert_close(main, decomposer.main_input(parts), rtol=0, atol=slack)


def releaser_of(*, kind: str, offload: str, stride: int, sigma: float | None) -> Releaser:
    generator = torch.Generator().manual_seed(stride)
    backbone = FixedStem(in_channels=1, ir_shape=(16, 16, 32), stride=1).eval()
    decomposer = Decomposer(
        channels=16, height=16, width=32, rank=4, block=4, keep=4, kind=kind,
        basis=torch.linalg.qr(torch.randn(16, 4, generator=generator)).Q if kind == "pca" else None,
    ).eval()  # fmt: skip
    source = 16 if offload == "residual" else 4
    matrix = torch.randn(3, source * stride**2, generator=generator)
    message = MessageMap("learned", channels=source, k=3, stride=stride, matrix=matrix).eval()
    config = ReleaseConfig(
        input=InputSpec(shape=(1, 16, 32), mean=(0.5,), std=(0.25,)),
        ir_shape=(16, 16, 32),
        backbone=Component(hash=computation_hash(backbone), provenance=FREE),
        basis=BasisConfig(
            kind=kind,
            rank=4,
            component=Component(hash=component_hash(decomposer.state_dict()), provenance=FREE),
        ),
        crop=CropConfig(block=4, keep=4),
        offload=offload,
        message=MessageConfig(
            map="learned",
            shape=(3, 16 // stride, 32 // stride),
            component=Component(hash=component_hash(message.state_dict()), provenance=PRIVATE),
        ),
        sigma=sigma,
    )
    assert config.message_stride == stride
    return Releaser(
        config,
        backbone=backbone,
        decomposer=decomposer,
        message=message,
        key=NoiseKey(hashlib.sha256(b"message map").digest()),
        memo=None,
    )


@pytest.mark.parametrize("kind", ["pca", "svd"])
@pytest.mark.parametrize("offload", ["residual", "principal"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_record_is_released_alike_alone_and_in_any_batch(kind, offload, stride):
    x = torch.randn(5, 1, 16, 32, generator=torch.Generator().manual_seed(7))
    names = tuple("abcde")
    for sigma in (None, 0.5):
        releaser = releaser_of(kind=kind, offload=offload, stride=stride, sigma=sigma)
        whole = releaser.release(x, RecordIds(records=names)).payload
        bits = unpack_bits(whole, releaser.config.message.shape)
        assert bits.shape == (5, 3, 16 // stride, 32 // stride)
        assert 0.2 < float(bits.float().mean()) < 0.8
        for part in (slice(0, 1), slice(3, 4), slice(1, 4), slice(2, 5)):
            found = releaser.release(x[part], RecordIds(records=names[part])).payload
            assert torch.equal(found, whole[part])


@pytest.mark.parametrize("basis", ["svd", "pca"])
@pytest.mark.parametrize("keep", [2, 4])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("k", [2, 3, 6])
@pytest.mark.parametrize("offload", ["residual", "principal"])
def test_macs_are_those_that_are_executed(basis, keep, stride, k, offload):
    """Also where k is the number of the stream's channels: a learned map is never the identity."""
    c, h, w, rank = 6, 8, 16, 3
    source = c if offload == "residual" else rank
    if k > source * stride**2 or (offload == "principal" and stride == 4 and keep == 2 and h // 2 % 4):
        pytest.skip("no such map")
    decomposer = Decomposer(
        channels=c, height=h, width=w, rank=rank, block=4, keep=keep, kind=basis,
        basis=torch.eye(c)[:, :rank] if basis == "pca" else None,
    )  # fmt: skip
    message = MessageMap(
        "learned", channels=source, k=k, stride=stride, matrix=torch.ones(k, source * stride**2)
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        parts, _ = message_of(
            torch.randn(2, c, h, w), decomposer=decomposer, message=message, offload=offload
        )
        decomposer.main_input(parts)
    counted = decomposition_macs(
        ir_shape=(c, h, w),
        rank=rank,
        block=4,
        keep=keep,
        basis=basis,
        k=k,
        offload=offload,
        stride=stride,
    )
    # A·U of a shared basis, one product for the whole batch.
    once = k * c * rank * stride**2 if basis == "pca" and offload == "residual" else 0
    assert 2 * counted + once == counter.get_total_flops() // 2


def test_maps_that_do_not_fit_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="1 ≤ k ≤ 12: 3 channels, stride 2; got 13; the nearest is 12"):
        MessageMap("learned", channels=3, k=13, stride=2)
    with pytest.raises(ConfigError, match="expected a matrix \\[2, 12\\], got \\[2, 3\\]"):
        MessageMap("learned", channels=3, k=2, stride=2, matrix=torch.ones(2, 3))
    with pytest.raises(ConfigError, match="not finite"):
        MessageMap("learned", channels=1, k=1, matrix=torch.tensor([[float("nan")]]))
    with pytest.raises(ConfigError, match="is fixed: it takes no stride"):
        MessageMap("channel-mean", channels=3, stride=2)
    message = MessageMap("learned", channels=3, k=2, stride=4)
    assert bool(message.matrix.isnan().all())  # never made from a map that is not there
    with pytest.raises(ConfigError, match="must divide the offloaded stream's 6×6, got 4; the nearest is 3"):
        message.shape_of((3, 6, 6))
    with pytest.raises(InputError, match="h and w multiples of 4; got"):
        message(torch.zeros(1, 3, 6, 6))
