"""The laws of the decomposition, and its fast path against a naive oracle."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from delta.decomposition.basis import iteration_start, pca_basis, svd_basis
from delta.decomposition.dct import block_basis, dct_matrix
from delta.decomposition.decomposer import Decomposer

DTYPES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-5}


def divisors(n):
    return [d for d in range(1, n + 1) if n % d == 0]


@st.composite
def cases(draw):
    block = draw(st.sampled_from([1, 2, 3, 4, 7]))
    height, width = block * draw(st.integers(1, 3)), block * draw(st.integers(1, 3))
    channels = draw(st.integers(1, 20))
    kind, algorithm = draw(st.sampled_from([("svd", "exact"), ("svd", "approximate"), ("pca", "exact")]))
    settings_ = {
        "channels": channels,
        "height": height,
        "width": width,
        "rank": draw(st.integers(1, channels)),
        "block": block,
        "keep": draw(st.integers(1, block)),
        "kind": kind,
        "algorithm": algorithm,
    }
    batch = draw(st.integers(1, 4))
    dtype = draw(st.sampled_from(list(DTYPES)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    phi = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
    phi = phi * 10.0 ** draw(st.integers(-3, 3)) + draw(st.sampled_from([0.0, 1.0]))
    if draw(st.booleans()):
        phi = phi.contiguous(memory_format=torch.channels_last)
    return settings_, phi.to(dtype)


def build(settings_, phi):
    basis = pca_basis(phi, settings_["rank"]) if settings_["kind"] == "pca" else None
    return Decomposer(**settings_, basis=basis)


def energy(x):
    return x.double().square().sum((1, 2, 3))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_laws(case):
    settings_, phi = case
    decomposer = build(settings_, phi)
    parts = decomposer(phi)
    back, rest = decomposer.reconstruct(parts), decomposer.residual(phi, parts)
    wide = torch.float64 if phi.dtype == torch.float64 else torch.float32
    assert parts.principal.dtype == back.dtype == rest.dtype == parts.basis.dtype == wide
    assert tuple(parts.principal.shape[1:]) == decomposer.principal_shape
    assert tuple(decomposer.main_input(parts).shape[1:]) == decomposer.main_shape
    exact, whole = phi.to(wide), energy(phi)
    slack = DTYPES[phi.dtype]
    torch.testing.assert_close(back + rest, exact, rtol=slack, atol=slack * float(exact.abs().max()))
    inner = (back.double() * rest.double()).sum((1, 2, 3))
    assert bool((inner.abs() <= 10 * slack * whole).all())
    torch.testing.assert_close(energy(parts.principal) + energy(rest), whole, rtol=10 * slack, atol=0)
    main = energy(decomposer.main_input(parts))
    torch.testing.assert_close(main, energy(parts.principal), rtol=10 * slack, atol=0)
    if settings_["rank"] == settings_["channels"] and settings_["keep"] == settings_["block"]:
        assert bool((energy(rest) <= slack * whole).all())


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(1, 20), st.integers(0, 2**31))
def test_the_fast_path_is_the_naive_residual_then_the_map(case, k, seed):
    settings_, phi = case
    decomposer = build(settings_, phi)
    weight = torch.randn(k, settings_["channels"], generator=torch.Generator().manual_seed(seed))
    parts, mapped = decomposer.decompose_and_map(phi, weight)
    slow = decomposer(phi)
    naive = torch.einsum("kc,bchw->bkhw", weight.to(mapped.dtype), decomposer.residual(phi, slow))
    size = float(phi.abs().max()) * float(weight.abs().sum(1).max())
    tolerance = DTYPES[phi.dtype] * size
    torch.testing.assert_close(parts.basis, slow.basis, rtol=0, atol=0)
    torch.testing.assert_close(parts.principal, slow.principal, rtol=0, atol=tolerance)
    torch.testing.assert_close(mapped, naive, rtol=0, atol=tolerance)
    _, itself = decomposer.decompose_and_map(phi, None)
    torch.testing.assert_close(itself, decomposer.residual(phi, slow), rtol=0, atol=0)


def alone_and_together(decomposer, phi, data):
    """One record's result in a drawn sub-batch, and in the whole batch."""
    weight = torch.full((1, phi.shape[1]), 1 / phi.shape[1])
    record = data.draw(st.integers(0, len(phi) - 1))
    first = data.draw(st.integers(0, record))
    last = data.draw(st.integers(record + 1, len(phi)))
    for batch, place in ((phi[first:last], record - first), (phi, record)):
        parts, mapped = decomposer.decompose_and_map(batch, weight)
        yield parts.principal[place], decomposer(batch).principal[place], mapped[place]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_record_does_not_see_its_batch(data):
    """Bit by bit on a CPU, where records start at multiples of 64 bytes."""
    kind, algorithm = data.draw(st.sampled_from([("svd", "exact"), ("svd", "approximate"), ("pca", "exact")]))
    sizes = {"channels": data.draw(st.sampled_from([16, 64])), "height": 16, "width": 32, "rank": 8}
    sizes |= {"block": 8, "keep": data.draw(st.sampled_from([4, 8])), "kind": kind, "algorithm": algorithm}
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    phi = torch.randn(data.draw(st.integers(1, 7)), sizes["channels"], 16, 32, generator=generator)
    if data.draw(st.booleans()):
        phi = phi.contiguous(memory_format=torch.channels_last)
    alone, together = alone_and_together(build(sizes, phi), phi, data)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_record_sees_no_more_of_its_batch_than_rounding(data):
    """For every shape. Only pca and well separated spectra: near a tie, singular vectors amplify rounding."""
    settings_, phi = data.draw(cases().filter(lambda case: case[0]["kind"] == "pca"))
    alone, together = alone_and_together(build(settings_, phi), phi, data)
    size = float(phi.abs().max()) * phi.shape[1]
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * size)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**31))
def test_svd_captures_the_most_energy(channels, positions, rank, seed):
    """Before the crop: as much as the true singular vectors, and no less than any other orthonormal basis."""
    rank = min(rank, channels)
    generator = torch.Generator().manual_seed(seed)
    phi = torch.randn(2, channels, 1, positions, generator=generator, dtype=torch.float64)
    x = phi.flatten(2)
    captured = (svd_basis(phi, rank).mT @ x).square().sum((1, 2))
    best = torch.linalg.svdvals(x)[:, :rank].square().sum(1)
    torch.testing.assert_close(captured, best)
    other = torch.linalg.qr(torch.randn(channels, rank, generator=generator, dtype=torch.float64)).Q
    assert bool((captured + 1e-9 >= (other.T @ x).square().sum((1, 2))).all())


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 24), st.sampled_from(["exact", "approximate"]), st.data())
def test_bases_are_orthonormal_whatever_the_rank_and_the_scale(channels, algorithm, data):
    rank = data.draw(st.integers(1, channels))
    true_rank = data.draw(st.integers(0, channels))
    scale = data.draw(st.sampled_from([0.0, 1e-30, 1e-12, 1.0, 1e12, 1e25]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    left = torch.randn(3, channels, true_rank, generator=generator)
    right = torch.randn(3, true_rank, 30, generator=generator)
    phi = (left @ right * scale).unflatten(2, (5, 6))
    phi[0] = torch.randn(channels, 5, 6, generator=generator)  # an ordinary neighbour
    start = iteration_start(channels, rank, 1) if algorithm == "approximate" else None
    basis = svd_basis(phi, rank, algorithm, start)
    gram = basis.mT @ basis
    torch.testing.assert_close(gram, torch.eye(rank).expand_as(gram), rtol=0, atol=2e-5)
    assert bool((basis.amax(1) >= -basis.amin(1)).all())
    alone = svd_basis(phi[:1], rank, algorithm, start)[0]  # the neighbour's wildness does not reach it
    assert float((alone @ alone.T - basis[0] @ basis[0].T).abs().max()) < 0.05
    if true_rank <= rank and scale > 0 and algorithm == "exact":
        x = phi.flatten(2).double()
        lost = x - basis.double() @ (basis.double().mT @ x)
        assert float(lost[1:].norm()) <= 1e-3 * float(x[1:].norm())


@pytest.mark.parametrize("size", [1, 2, 6, 8, 12, 28, 32, 56])
def test_every_valid_block_basis_is_the_block_dct(size):
    for block in divisors(size):
        for keep in range(1, block + 1):
            basis = block_basis(size=size, block=block, keep=keep)
            kept = size * keep // block
            assert basis.shape == (kept, size)
            assert basis.dtype == torch.float64
            torch.testing.assert_close(
                basis @ basis.T, torch.eye(kept, dtype=torch.float64), rtol=0, atol=1e-12
            )
            one = dct_matrix(keep).T @ dct_matrix(block)[:keep]
            torch.testing.assert_close(basis, torch.block_diag(*[one] * (size // block)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_dct_matrix_is_the_textbook_sum(n):
    x = torch.linspace(-1, 2, n, dtype=torch.float64) ** 2
    for j in range(n):
        scale = math.sqrt((1 if j == 0 else 2) / n)
        expected = scale * sum(float(x[i]) * math.cos(math.pi * j * (2 * i + 1) / (2 * n)) for i in range(n))
        assert float(dct_matrix(n)[j] @ x) == pytest.approx(expected, abs=1e-12)
