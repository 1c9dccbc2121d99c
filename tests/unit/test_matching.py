import pytest
import torch

from delta.attacks.matching import bit_likelihood, match_candidates
from delta.errors import InputError


def _case(n=40, d=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    messages = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return messages / messages.norm(dim=1, keepdim=True)


def test_likelihood_equals_a_naive_sum():
    messages = _case(n=5, d=16)
    bits = (torch.rand(3, 16, generator=torch.Generator().manual_seed(1)) < 0.5).long()
    got = bit_likelihood(bits, messages, sigma=0.5)
    normal = torch.distributions.Normal(0.0, 1.0)
    for i in range(3):
        for j in range(5):
            p = normal.cdf(messages[j] / 0.5)
            expected = torch.where(bits[i] == 1, p, 1 - p).log().sum()
            assert float(got[i, j]) == pytest.approx(float(expected), rel=1e-9)


def test_noiseless_bits_are_matched():
    messages = _case()
    result = match_candidates((messages >= 0).long(), messages, torch.arange(40), sigma=None)
    assert result.top1 == 100.0
    assert result.median_rank == 1.0
    assert result.best.tolist() == list(range(40))


def test_random_bits_are_matched_at_the_rate_of_chance():
    messages = _case(n=50)
    bits = torch.randint(0, 2, (2000, 64), generator=torch.Generator().manual_seed(3))
    truth = torch.arange(2000) % 50
    result = match_candidates(bits, messages, truth, sigma=1.0)
    assert 0.5 < result.top1 < 4.0  # 2 % expected, standard deviation 0.31
    assert 20 < result.median_rank < 31


def test_ties_count_by_their_chance():
    messages = _case(n=1).expand(4, -1)
    result = match_candidates((messages >= 0).long(), messages, torch.arange(4), sigma=None)
    assert result.top1 == pytest.approx(25.0)
    assert result.median_rank == pytest.approx(2.5)


def test_shapes_must_agree():
    with pytest.raises(InputError, match="one width"):
        match_candidates(torch.zeros(2, 8), torch.zeros(3, 9), torch.zeros(2, dtype=torch.long), sigma=None)
