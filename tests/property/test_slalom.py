"""Laws of Slalom's arithmetic: exact against Python's integers, and always inside the field."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from delta.methods.layers import linear_layers
from delta.methods.slalom.field import (
    EXACT,
    LIMB,
    PRIME,
    centred,
    half_of,
    limbs,
    product,
    reduce_,
    weighted_sum,
)
from delta.methods.slalom.quantise import input_ranges, quantised
from delta.methods.slalom.spec import LayerSpec, exact_product, plain_product

PRIMES = st.sampled_from([7, 251, 8191, 10_485_767, PRIME])
LARGE = st.integers(PRIME - EXACT + 1, EXACT - PRIME - 1)


def test_the_prime_is_one_and_the_largest_below_2_to_the_24():
    def is_prime(n):
        return all(n % d for d in range(2, int(n**0.5) + 1))

    assert is_prime(PRIME)
    assert not any(is_prime(n) for n in range(PRIME + 1, 2**24))


@given(st.lists(LARGE, min_size=1, max_size=20), PRIMES)
def test_reduction_is_exact(values, prime):
    multiples = [value // prime * prime + j for value in values for j in (-1, 0, 1)]
    values += [value for value in multiples if abs(value) < EXACT - PRIME]
    found = reduce_(torch.tensor(values, dtype=torch.float64), prime)
    assert [int(value) for value in found] == [value % prime for value in values]


HARD = [q * PRIME + j for q in range(EXACT // PRIME - 4000, EXACT // PRIME - 2) for j in (-1, 0, 1)]
"""Integers next to multiples of p near 2⁵³, where the quotient comes nearest to the next integer."""


def test_even_by_the_reciprocal_of_this_prime_the_reduction_would_be_right():
    # 1/p is within 2⁻⁶⁰ of a float64, relatively: multiplying by it is as good as one rounding.
    assert abs(Fraction(1 / PRIME) * PRIME - 1) < Fraction(1, 2**60)
    x = torch.tensor(HARD, dtype=torch.float64)
    expected = [value % PRIME for value in HARD]
    assert (x - torch.floor(x * (1 / PRIME)) * PRIME).tolist() == expected
    assert reduce_(x).tolist() == expected


def test_the_reduction_divides_by_a_tensor_where_its_numbers_are():
    """By a number of the host a CUDA kernel may multiply by the reciprocal, which another prime might not bear."""
    divisors = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.div.Tensor:
                divisors.append(args[1])
            return func(*args, **(kwargs or {}))

    with Watch():
        reduce_(torch.empty(3, dtype=torch.float64, device="meta"))
    ((divisor),) = divisors
    assert isinstance(divisor, torch.Tensor)
    assert divisor.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_reduction_is_exact_on_cuda():
    values = HARD + [-value for value in HARD]
    found = reduce_(torch.tensor(values, dtype=torch.float64, device="cuda"))
    assert found.tolist() == [value % PRIME for value in values]


@pytest.mark.parametrize("count", [1, 2**17 - 1, 2**17 + 1, 2**18 + 7])
@pytest.mark.parametrize(("left", "right"), [(LIMB - 1, PRIME - 1), (1 - LIMB, PRIME - 1), (LIMB - 1, 2)])
def test_products_are_exact_however_many_are_added_up(count, left, right):
    rows = torch.full((2, 1, count), left, dtype=torch.float64)
    columns = torch.full((2, count, 1), right, dtype=torch.float64)
    found = product(rows, columns, largest=(LIMB - 1) * (PRIME - 1))
    assert found.flatten().tolist() == 2 * [count * left * right % PRIME]


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=20), PRIMES)
def test_centred_residues(values, prime):
    for value, found in zip(values, centred(torch.tensor(values), prime).tolist(), strict=True):
        assert abs(found) <= half_of(prime)
        assert (found - value) % prime == 0


@given(st.integers(0, PRIME - 1))
def test_limbs_put_together_again(value):
    high, low = limbs(torch.tensor([value], dtype=torch.float64), dim=0).tolist()
    assert high * LIMB + low == value
    assert 0 <= low < LIMB
    assert 0 <= high < LIMB


@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 5), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=30)
def test_weighted_sums_are_exact(rows, count, size, extreme, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        if extreme:
            return torch.full(shape, PRIME - 1)
        return torch.randint(0, PRIME, shape, generator=generator)

    factors, values = draw(rows, count), draw(count, size)
    found = weighted_sum(factors.double(), values.to(torch.int32))
    expected = [
        [sum(a * b for a, b in zip(row, column, strict=True)) % PRIME for column in values.T.tolist()]
        for row in factors.tolist()
    ]
    assert found.to(torch.int64).tolist() == expected


@st.composite
def convolutions(draw):
    groups = draw(st.integers(1, 3))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(pair), draw(pair), draw(pair)
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    channels = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 2))
    size = tuple(d * (k - 1) + draw(st.integers(1, 6)) for d, k in zip(dilation, kernel, strict=True))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    module = nn.Conv2d(*channels, kernel, stride=stride, dilation=dilation, padding=padding, groups=groups)
    return module, (channels[0], *size)


@given(convolutions(), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_products_of_any_convolution_are_exact(made, count):
    module, shape = made
    (layer,) = linear_layers(nn.Sequential(module), torch.zeros(1, *shape))
    spec = LayerSpec.of(layer)
    assert spec.macs == layer.macs
    x = torch.randint(0, PRIME, (count, *shape))
    weight = torch.randint(-(2**12), 2**12, spec.weight_shape)
    found = exact_product(spec, weight.double(), x.to(torch.int32))
    assert torch.equal(found.to(torch.int64), plain_product(spec, weight, x))


@given(convolutions(), st.integers(4, 15), st.integers(4, 15), st.floats(1, 16), st.floats(1e-6, 1e6))
@settings(max_examples=60, deadline=None)
def test_no_input_leads_out_of_the_field(made, activation_bits, weight_bits, headroom, size):
    module, shape = made
    model = nn.Sequential(module)
    x = size * torch.randn(4, *shape)
    (layer,) = linear_layers(model, x)
    seen = input_ranges(model, (layer,), x)
    chosen = quantised(
        layer,
        seen["0"],
        activation_bits=activation_bits,
        weight_bits=weight_bits,
        headroom=headroom,
    )
    assert chosen.clip < 2 ** (activation_bits - 1)
    weight = chosen.weight.to(torch.int64)
    assert int(weight.abs().max()) < 2 ** (weight_bits - 1)
    assert int(weight.abs().flatten(1).sum(dim=1).max()) * chosen.clip <= half_of(PRIME)
    for extreme in (x, 1e30 * x.sign(), torch.full_like(x, torch.inf)):
        q = chosen.quantise(extreme).to(torch.int64)
        assert int(q.abs().max()) <= chosen.clip
        assert int(plain_product(chosen.spec, weight, q).abs().max()) <= half_of(PRIME)
