import pytest
import torch

from delta.attacks.linkability import CASES, Known, linkability, recompressed, shifted
from delta.attacks.membership.curves import curve_of
from delta.attacks.release_tap import ReleaseTap
from delta.attacks.same_record import fit_link
from delta.errors import ConfigError, InputError


def _known(data):
    return Known(data.images, data.labels, data.ids)


@pytest.fixture(scope="module")
def found(trained):
    """Cases by name, of the noiseless release and of that at ε = 8."""
    results = {}
    for name in ("none", "noise"):
        bundle = trained.bundles[name]
        result = linkability(
            ReleaseTap(bundle), _known(trained.data.train), _known(trained.data.test), bundle.manifest.input
        )
        results[name] = {case.name: case for case in result.cases}
    return results


def test_the_same_id_is_always_linkable(found):
    for cases in found.values():
        case = cases[CASES[0]]
        assert case.identical == 1
        assert case.agreement.auc == 1
        assert "always linkable" in case.line()


def test_without_noise_the_record_and_its_near_duplicates_are_linked(found):
    cases = found["none"]
    assert cases[CASES[1]].identical == 1
    assert cases[CASES[2]].agreement.interval[0] > 0.8
    # A shift moves the bits, which agreement cannot see through and a fitted ratio can.
    assert cases[CASES[3]].likelihood.interval[0] > max(0.8, cases[CASES[3]].agreement.auc)
    assert cases[CASES[4]].likelihood.auc > cases[CASES[5]].likelihood.auc


def test_fresh_noise_at_eight_links_next_to_nothing(found):
    for name in CASES[1:]:
        if name in found["noise"]:
            case = found["noise"][name]
            assert case.identical == 0
            assert case.agreement.interval[0] < 0.6
            assert case.likelihood.interval[0] < 0.6


def test_lines_promise_nothing_and_figures_are_complete(found):
    case = found["noise"][CASES[1]]
    assert "private" not in case.line()
    figures = case.to_json()
    assert (figures["pairs"], figures["random_pairs"]) == (50, 25)
    assert set(figures["agreement"]["tpr_at_fpr"]) == {"0.01"}


def test_too_few_records_are_refused(trained):
    bundle = trained.bundles["none"]
    few = trained.data.test.limited(30, seed=0)
    with pytest.raises(ConfigError, match="40 victims"):
        linkability(ReleaseTap(bundle), _known(trained.data.train), _known(few), bundle.manifest.input)


def test_near_duplicates_are_near():
    grey = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for images in (grey, grey.expand(-1, 3, -1, -1), grey.expand(-1, 2, -1, -1)):
        again = recompressed(images)
        assert again.shape == images.shape
        assert 0 < float((again - images).abs().mean()) < 0.15
    torch.testing.assert_close(shifted(grey)[..., 1:], grey[..., :-1])
    torch.testing.assert_close(shifted(grey)[..., 0], grey[..., 0])


def _pairs(n, d, *, rho, seed):
    """Observations of one record: they share ρ of the variance in each of d coordinates."""
    generator = torch.Generator().manual_seed(seed)
    shared, first, second = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(3))
    return tuple(rho**0.5 * shared + (1 - rho) ** 0.5 * own for own in (first, second))


def test_the_ratio_is_that_of_correlated_gaussians():
    link = fit_link(*_pairs(20_000, 2, rho=0.6, seed=0))
    u, v = _pairs(200, 2, rho=0.6, seed=1)
    together = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal
    zero = torch.zeros(2, dtype=torch.float64)
    expected = torch.zeros(200, dtype=torch.float64)
    for coordinate in range(2):
        pair = torch.stack([u[:, coordinate], v[:, coordinate]], 1)
        apart = normal(zero, torch.eye(2, dtype=torch.float64)).log_prob(pair)
        expected += normal(zero, together).log_prob(pair) - apart
    torch.testing.assert_close(link.ratio(u, v), expected, atol=0.15, rtol=0.1)


def test_many_weak_coordinates_add_up_where_there_is_something_to_find():
    link = fit_link(*_pairs(600, 2100, rho=0.5, seed=0))  # more dimensions than are taken apart exactly
    same, (a, _), (_, d) = (_pairs(200, 2100, rho=0.5, seed=seed) for seed in (1, 2, 3))
    assert curve_of(link.ratio(*same), link.ratio(a, d)).interval[0] > 0.8
    none = fit_link(*_pairs(400, 30, rho=0.0, seed=4))
    scores = none.ratio(*_pairs(400, 30, rho=0.0, seed=5))
    assert float(scores.abs().mean()) < 0.1


def test_too_few_pairs_fit_nothing():
    with pytest.raises(InputError, match="16 pairs"):
        fit_link(torch.zeros(4, 3), torch.zeros(4, 3))
