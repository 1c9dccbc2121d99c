"""Candidate matching at scale, over several looks, and of bags of patches."""

import pytest
import torch

from delta.attacks.matching import (
    bag_scores,
    likelihood_scores,
    match_candidates,
    match_scores,
    patches_of,
)
from delta.errors import InputError


def _messages(n=200, d=128, seed=0):
    found = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return found / found.norm(dim=1, keepdim=True)


def _bits(messages, sigma, *, looks=1, seed=1):
    """Means of ±1 under fresh noise."""
    chance = torch.special.ndtr(messages / sigma)
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        torch.rand(chance.shape, generator=generator, dtype=torch.float64) < chance for _ in range(looks)
    ]
    return torch.stack(drawn).double().mean(0) * 2 - 1


def test_scores_of_a_mean_are_the_sum_over_its_looks():
    messages = _messages(n=6, d=16)
    looks = [_bits(messages, 0.3, seed=seed) for seed in range(5)]
    together = likelihood_scores(torch.stack(looks).mean(0), messages, sigma=0.3, looks=5)
    each = sum(likelihood_scores(look, messages, sigma=0.3) for look in looks)
    torch.testing.assert_close(together, each)


def test_more_looks_match_where_one_does_not():
    messages, sigma = _messages(), 1.2  # ε = 8
    truth = torch.arange(len(messages))

    def top1(looks):
        seen = _bits(messages, sigma, looks=looks)
        return match_scores(
            seen, messages, truth, lambda a, b: likelihood_scores(a, b, sigma=sigma, looks=looks)
        ).top1

    found = [top1(looks) for looks in (1, 20, 200)]
    assert found[0] < 10 < found[1] < 90 < found[2]


@pytest.mark.parametrize(("batch", "candidates"), [(7, 11), (200, 1), (1, 4096)])
def test_pieces_change_nothing(batch, candidates):
    messages, truth = _messages(), torch.arange(200)
    seen = _bits(messages, 0.3)

    def scores(some, pool):
        return likelihood_scores(some, pool, sigma=0.3)

    whole = match_scores(seen, messages, truth, scores)
    pieces = match_scores(seen, messages, truth, scores, batch=batch, candidates=candidates)
    assert whole.to_json() == pieces.to_json()
    assert torch.equal(whole.best, pieces.best)
    assert 5 < whole.top1 < 95


def test_the_figures_are_those_of_the_ranks():
    pool = torch.tensor([[3.0], [2.0], [1.0], [0.0], [-1.0], [-2.0]])
    seen = torch.ones(6, 1)  # every observation scores the first candidate highest
    found = match_scores(seen, pool, torch.arange(6), lambda a, b: a @ b.T)
    assert (found.top1, found.top5) == (pytest.approx(100 / 6), pytest.approx(500 / 6))
    assert (found.median_rank, found.mean_rank) == (3.0, 3.5)
    assert found.interval[0] <= found.top1 <= found.interval[1]


def test_a_tie_of_all_is_chance_in_every_figure():
    found = match_scores(
        torch.zeros(4, 1), torch.zeros(10, 1), torch.arange(4), lambda a, b: a.double() @ b.double().T
    )
    assert (found.top1, found.top5, found.mean_rank) == (pytest.approx(10), pytest.approx(50), 5.5)


def test_nothing_to_match_is_refused():
    with pytest.raises(InputError, match="one release at least"):
        match_scores(torch.zeros(0, 1), torch.zeros(3, 1), torch.zeros(0), lambda a, b: a @ b.T)
    with pytest.raises(InputError, match="one truth a release"):
        match_scores(torch.zeros(2, 1), torch.zeros(3, 1), torch.arange(1), lambda a, b: a @ b.T)


def test_shuffled_patches_are_matched_as_a_bag_and_not_as_they_lie():
    maps = torch.randn(60, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bags = patches_of(maps, 4)
    orders = torch.stack([(torch.arange(16) + 1 + i % 15) % 16 for i in range(60)])  # no patch stays
    shuffled = torch.gather(bags, 1, orders[:, :, None].expand_as(bags)).sign()
    truth = torch.arange(60)
    as_bags = match_scores(shuffled, bags, truth, lambda a, b: bag_scores(a, b, sigma=None))
    assert as_bags.top1 == 100.0
    as_it_lies = match_candidates((shuffled.flatten(1) > 0).long(), bags.flatten(1), truth, sigma=None)
    assert as_it_lies.top1 < 10


def test_a_patch_must_divide_the_message():
    with pytest.raises(InputError, match="5 does not divide 16×16"):
        patches_of(torch.zeros(1, 1, 16, 16), 5)
