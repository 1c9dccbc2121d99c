"""Gradients, dtypes, devices, refusals and provenance helpers of the decomposition."""

import pytest
import torch
from safetensors.torch import load, save

from delta.decomposition.basis import iteration_start, pca_basis, svd_basis, synthetic_images
from delta.decomposition.dct import SpatialBasis, block_basis
from delta.decomposition.decomposer import Decomposer
from delta.errors import ConfigError, InputError

SIZES = {"channels": 6, "height": 8, "width": 4, "rank": 2, "block": 4, "keep": 2}
PHI = torch.randn(3, 6, 8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def decomposer(kind, algorithm="exact"):
    return Decomposer(
        **SIZES, kind=kind, algorithm=algorithm, basis=pca_basis(PHI, 2) if kind == "pca" else None
    )


KINDS = [("pca", "exact"), ("svd", "exact"), ("svd", "approximate")]


@pytest.mark.parametrize(("kind", "algorithm"), KINDS)
def test_gradients_flow_through_the_coefficients_and_never_through_the_basis(kind, algorithm):
    module = decomposer(kind, algorithm)
    phi = PHI.clone().requires_grad_(True)
    parts = module(phi)
    assert not parts.basis.requires_grad
    seed = torch.randn_like(parts.principal)
    (gradient,) = torch.autograd.grad(parts.principal, phi, seed)
    # The derivative of p for a fixed U is the adjoint of p = D_h (Uᵀφ) D_wᵀ.
    maps = module.spatial.synthesise(seed).flatten(2)
    expected = torch.matmul(parts.basis, maps).view_as(phi)
    torch.testing.assert_close(gradient, expected)
    weight = torch.ones(1, 6, dtype=torch.float64)
    _, mapped = module.decompose_and_map(phi, weight)
    (fast,) = torch.autograd.grad(mapped.square().sum(), phi)
    (slow,) = torch.autograd.grad(module.residual(phi, module(phi)).sum(1).square().sum(), phi)
    torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize(("kind", "algorithm"), KINDS)
def test_autocast_changes_nothing(kind, algorithm):
    module, phi = decomposer(kind, algorithm), PHI.float()
    weight = torch.ones(1, 6)
    plain = module.decompose_and_map(phi, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = module.decompose_and_map(phi, weight)
        assert torch.equal(module.residual(phi, cast[0]), module.residual(phi, plain[0]))
    assert torch.equal(plain[1], cast[1])
    assert torch.equal(plain[0].principal, cast[0].principal)


def test_a_state_dict_round_trip_carries_the_basis_and_nothing_that_follows_from_the_sizes():
    module = Decomposer(**SIZES, kind="pca", basis=pca_basis(PHI.float(), 2))
    state = load(save(module.state_dict()))
    assert set(state) == {"basis"}
    other = Decomposer(**SIZES, kind="pca")
    assert bool(other(PHI.float()).principal.isnan().all()), (
        "a basis that was never loaded must not give numbers"
    )
    other.load_state_dict(state)
    assert torch.equal(other(PHI.float()).principal, module(PHI.float()).principal)
    assert decomposer("svd").state_dict() == {}
    assert set(decomposer("svd", "approximate").state_dict()) == {"start"}


def test_main_input_is_p_for_pca_and_in_all_channels_for_svd():
    pca, svd = decomposer("pca"), decomposer("svd")
    assert (pca.main_channels, svd.main_channels) == (2, 6)
    assert pca.main_shape == (2, 4, 2)
    assert svd.main_shape == (6, 4, 2)
    parts = svd(PHI)
    for i in range(len(PHI)):
        expected = torch.einsum("cr,rhw->chw", parts.basis[i], parts.principal[i])
        torch.testing.assert_close(svd.main_input(parts)[i], expected)


def test_approximate_is_close_to_exact_on_a_convolutional_stem():
    torch.manual_seed(0)
    stem = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.PReLU(64))
    with torch.no_grad():
        phi = stem(synthetic_images(16, (3, 32, 32), 5))
    for seed in range(3):
        start = iteration_start(64, 8, seed)
        rest = [
            float((phi - (u @ (u.mT @ phi.flatten(2))).view_as(phi)).square().sum())
            for u in (svd_basis(phi, 8), svd_basis(phi, 8, "approximate", start))
        ]
        assert 1 <= rest[1] / rest[0] <= 1.03


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("algorithm", ["exact", "approximate"])
def test_values_that_are_not_finite_are_refused_without_being_shown(bad, algorithm):
    phi = PHI.float()
    phi[1, 2, 3, 1] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        svd_basis(phi, 2, algorithm, iteration_start(6, 2, 0))
    with pytest.raises(InputError, match="NaN or infinite"):
        pca_basis(phi, 2)


@pytest.mark.parametrize(
    ("settings", "nearest"),
    [
        ({"size": 32, "block": 12, "keep": 4}, "8 or 16"),
        ({"size": 32, "block": 0, "keep": 1}, "1"),
        ({"size": 32, "block": 64, "keep": 1}, "32"),
        ({"size": 32, "block": 16, "keep": 17}, "16"),
        ({"size": 32, "block": 16, "keep": 0}, "1"),
        ({"size": 0, "block": 1, "keep": 1}, "1"),
    ],
)
def test_an_invalid_crop_names_the_nearest_valid_one(settings, nearest):
    with pytest.raises(ConfigError, match=rf"{nearest}$"):
        block_basis(**settings)


def test_a_block_must_divide_both_sides():
    with pytest.raises(ConfigError, match=r"nearest valid: 4$"):
        SpatialBasis(height=8, width=12, block=8, keep=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "nearest valid is 1"),
        ({"rank": 7}, "nearest valid is 6"),
        ({"basis": torch.eye(6)[:, :3]}, r"\[6, 2\]"),
        ({"basis": torch.ones(6, 2)}, "orthonormal"),
        ({"kind": "svd", "basis": torch.eye(6)[:, :2]}, "only pca"),
        ({"start": torch.eye(6)[:, :2]}, "only approximate svd"),
        ({"kind": "svd", "algorithm": "approximate", "start": torch.eye(6)[:, :1]}, "2 to 6"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Decomposer(**{**SIZES, "kind": "pca", **change})


def test_wrong_inputs_are_refused():
    for phi in (PHI[0], PHI[:, :5], PHI.transpose(2, 3)):
        with pytest.raises(InputError, match=r"\[n, 6, 8, 4\]"):
            decomposer("pca")(phi)
    with pytest.raises(InputError, match="int64"):
        decomposer("pca")(PHI.long())
    with pytest.raises(ConfigError, match="iteration_start"):
        svd_basis(PHI, 2, "approximate")
    with pytest.raises(InputError, match="at least one"):
        pca_basis(PHI[:0], 2)


def test_synthetic_images_are_seeded_standardised_and_fall_off_like_natural_ones():
    images = synthetic_images(64, (3, 32, 32), 7)
    assert torch.equal(images, synthetic_images(64, (3, 32, 32), 7))
    assert not torch.equal(images, synthetic_images(64, (3, 32, 32), 8))
    torch.testing.assert_close(images.mean((2, 3)), torch.zeros(64, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(images.square().mean((2, 3)), torch.ones(64, 3), rtol=1e-4, atol=0)
    amplitude = torch.fft.rfft2(images).abs().square().mean((0, 1)).sqrt()
    assert float(amplitude[0, 2] / amplitude[0, 8]) == pytest.approx(4, rel=0.25)
    assert synthetic_images(1, (1, 1, 1), 0).isfinite().all()
    start = iteration_start(16, 4, 3)
    assert torch.equal(start, iteration_start(16, 4, 3))
    torch.testing.assert_close(start.T @ start, torch.eye(start.shape[1]), rtol=0, atol=1e-6)
