"""The pieces of 3LegRace: geometry of a convolution, the low-rank split, the private leg, the noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from delta.errors import CloudAnswerError, ModelError
from delta.methods.layers import linear_layers
from delta.methods.three_leg_race.geometry import Geometry
from delta.methods.three_leg_race.lowrank import (
    convolve_low_rank,
    low_rank_macs,
    low_rank_weight_gradient,
    split_macs,
    split_records,
)
from delta.methods.three_leg_race.outbound import NoiseSource, outbound

CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(6, 8, 3, padding=1, bias=False),
    "strided": lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
    "1x1": lambda: nn.Conv2d(6, 8, 1, bias=False),
    "1x1 strided": lambda: nn.Conv2d(6, 8, 1, stride=2, bias=False),
    "dilated": lambda: nn.Conv2d(6, 8, 3, padding=2, dilation=2, bias=False),
    "same": lambda: nn.Conv2d(6, 8, (3, 5), padding="same", bias=False),
    "valid": lambda: nn.Conv2d(6, 8, 2, padding="valid", bias=False),
    "oblong": lambda: nn.Conv2d(6, 8, (1, 3), stride=(1, 2), padding=(0, 1), bias=False),
    "grouped": lambda: nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=False),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
}
SHAPES = [(4, 3, 5), (30, 3, 4), (9, 3, 3)]
"""Fewer channels than positions, more, and as many."""


def _geometry(conv: nn.Conv2d, size: int = 9) -> Geometry:
    return Geometry.of(linear_layers(nn.Sequential(conv), torch.zeros(1, conv.in_channels, size, size))[0])


def _records(*shape: int, seed: int = 0, decay: float = 0.6) -> torch.Tensor:
    """Records `shape` whose singular values fall, so that the energy rule has something to find."""
    generator = torch.Generator().manual_seed(seed)
    u, s, v = torch.linalg.svd(torch.randn(*shape, generator=generator).flatten(2), full_matrices=False)
    return (u * s[:, None, :1] * decay ** torch.arange(s.shape[1]) @ v).view(shape)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_geometry_convolves_and_goes_back_as_the_layer_does(name):
    torch.manual_seed(0)
    conv, x = CONVOLUTIONS[name](), torch.randn(3, 6, 9, 9, requires_grad=True)
    geometry = _geometry(conv)
    y = conv(x)
    assert geometry.output == tuple(y.shape[1:])
    assert geometry.weight == tuple(conv.weight.shape)
    torch.testing.assert_close(geometry.convolve(x, conv.weight), y)
    dy = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, conv.weight), dy)
    with torch.inference_mode():
        found = geometry.gradients(dy, x.detach(), conv.weight.detach())
        alone = geometry.weight_gradient(dy, x.detach(), conv.weight.detach())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(alone, expected[1])


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_padding_one_end_more_than_the_other_is_refused_by_name():
    with pytest.raises(ModelError, match="'0' pads one end more"):
        _geometry(nn.Conv2d(6, 8, 4, padding="same"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("energy", [0.0, 0.02, 0.1, 0.5])
def test_the_rank_is_the_least_that_the_energy_rule_allows(shape, energy):
    x = _records(5, *shape)
    parts, residual = split_records(x, energy=energy, max_rank=32)
    torch.testing.assert_close(parts.product().view_as(x) + residual, x)
    for i, record in enumerate(x.flatten(2).double()):
        squares = torch.linalg.svdvals(record).square()
        left = 1 - squares.cumsum(0) / squares.sum()  # after each term
        least = int((left > energy).sum()) + 1 if energy else len(squares)
        # Without a share for the residual, rounding may take a term less.
        assert parts.ranks[i] == least or (energy == 0 and least - 1 <= parts.ranks[i] <= least)
        share = float(residual[i].double().square().sum() / squares.sum())
        assert share == pytest.approx(float(left[int(parts.ranks[i]) - 1]), abs=1e-5)
        assert share <= energy + 1e-6


def test_the_rank_stops_at_its_limit_and_a_record_needs_no_neighbour():
    x = torch.cat([_records(3, 16, 6, 6, decay=0.95), torch.zeros(1, 16, 6, 6)])
    parts, residual = split_records(x, energy=0.01, max_rank=4)
    assert parts.ranks.tolist() == [4, 4, 4, 1]
    assert not bool(residual[3].any())
    x = torch.cat([_records(1, 16, 6, 6, decay=0.1), x])
    parts, residual = split_records(x, energy=0.01, max_rank=4)
    assert int(parts.ranks[0]) < 4
    for i, record in enumerate(x):
        alone, rest = split_records(record[None], energy=0.01, max_rank=4)
        assert alone.ranks[0] == parts.ranks[i]
        torch.testing.assert_close(alone.product()[0], parts.product()[i])
        torch.testing.assert_close(rest[0], residual[i])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_records_of_any_scale_are_split_alike(scale):
    x = _records(2, 8, 5, 5)
    parts, residual = split_records(x, energy=0.1, max_rank=32)
    scaled, rest = split_records(x * scale, energy=0.1, max_rank=32)
    assert scaled.ranks.tolist() == parts.ranks.tolist()
    torch.testing.assert_close(rest / scale, residual, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_laid_at_the_clouds_door(value):
    x = _records(2, 8, 5, 5)
    x[1, 0, 0, 0] = value
    with pytest.raises(CloudAnswerError, match="not finite"):
        split_records(x, energy=0.1, max_rank=32)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("rank", [1, 2, 6])
def test_the_private_leg_is_the_convolution_of_the_low_rank_part(name, rank):
    torch.manual_seed(0)
    conv, x = CONVOLUTIONS[name](), _records(3, 6, 9, 9, decay=0.9)
    geometry, weight = _geometry(conv), conv.weight.detach()
    parts, _ = split_records(x, energy=0.0, max_rank=rank)
    assert parts.rank == rank
    low = parts.product().view_as(x)
    expected = geometry.convolve(low, weight)
    with FlopCounterMode(display=False) as counter:
        found = convolve_low_rank(geometry, parts, weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert counter.get_total_flops() == 2 * len(x) * low_rank_macs(geometry, rank)
    dy = torch.randn_like(expected)
    torch.testing.assert_close(
        low_rank_weight_gradient(geometry, parts, dy, weight),
        geometry.weight_gradient(dy, low, weight),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_low_rank_is_cheaper_and_the_counts_are_what_runs():
    geometry = _geometry(nn.Conv2d(64, 64, 3, padding=1, bias=False), 16)
    assert low_rank_macs(geometry, 4) < 0.1 * geometry.macs
    assert low_rank_macs(geometry, 64) >= geometry.macs
    # A Gram matrix of at most 16 channels is one product; larger ones are computed by strips, counted in full.
    x = _records(2, 16, 6, 6, decay=0.9)
    small = _geometry(nn.Conv2d(16, 4, 1), 6)
    with FlopCounterMode(display=False) as counter:
        parts, _ = split_records(x, energy=0.0, max_rank=5)
    assert counter.get_total_flops() == 2 * len(x) * split_macs(small, parts.rank, max_rank=5)


def test_noise_is_standard_normal_and_a_function_of_key_record_and_layer():
    source = NoiseSource(0)
    values = source.normal([b"a", b"b"], 0, 100_001)
    assert values.shape == (2, 100_001)
    again = NoiseSource(0).normal([b"b"], 0, 100_001)
    assert torch.equal(values[1:], again)
    others = [
        NoiseSource(1).normal([b"a"], 0, 100_001),
        NoiseSource().normal([b"a"], 0, 100_001),
        source.normal([b"a"], 1, 100_001),
        values[1:],
    ]
    for other in others:
        assert abs(float(torch.corrcoef(torch.cat([values[:1], other]))[0, 1])) < 0.02
    wide = values.double()
    normal = torch.distributions.Normal(0.0, 1.0)
    steps = torch.linspace(-4, 4, 81)
    found = torch.stack([(wide < step).double().mean() for step in steps])
    assert float((found - normal.cdf(steps)).abs().max()) < 0.005
    assert float(wide.mean().abs()) < 0.01
    assert float(wide.var()) == pytest.approx(1, abs=0.01)
    assert float((wide[:, :-1] * wide[:, 1:]).mean()) == pytest.approx(0, abs=0.01)
    assert bool(wide.isfinite().all())


def test_the_noise_of_a_record_is_in_proportion_to_its_own_residual():
    residual = torch.randn(3, 16, 20, 20) * torch.tensor([0.01, 1.0, 0.0]).view(3, 1, 1, 1)
    noise = NoiseSource(0).normal([b"a", b"b", b"c"], 0, 16 * 400)
    sent = outbound(residual, noise=noise, noise_ratio=0.25)["x"]
    ratio = (sent - residual).std((1, 2, 3)) / residual.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(ratio[:2], torch.full((2,), 0.25), rtol=0.03, atol=0)
    assert not bool(sent[2].any())
    assert torch.equal(outbound(residual, noise=noise, noise_ratio=0.0)["x"], residual)
    assert torch.equal(outbound(residual)["x"], residual)
