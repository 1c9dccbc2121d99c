"""Bag matching against brute force, and the laws that it must keep."""

import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from delta.attacks.matching import FLIP_RATE, bag_scores, likelihood_scores, patches_of

seeds = st.integers(0, 2**31)


def _case(seed, patches, d):
    generator = torch.Generator().manual_seed(seed)
    messages = torch.randn(3, patches, d, generator=generator, dtype=torch.float64)
    bits = torch.randint(0, 2, (2, patches, d), generator=generator) * 2 - 1
    return bits.double(), messages


def _each(bits, patch, sigma):
    """Log-likelihood of one patch's bits under one candidate patch."""
    if sigma is None:
        equal = int((bits == torch.where(patch >= 0, 1.0, -1.0)).sum())
        return equal * math.log1p(-FLIP_RATE) + (len(bits) - equal) * math.log(FLIP_RATE)
    return float(torch.special.log_ndtr(bits * patch / sigma).sum())


@settings(max_examples=30, deadline=None)
@given(seed=seeds, patches=st.integers(1, 3), d=st.integers(1, 4), sigma=st.sampled_from([None, 0.3, 2.0]))
def test_a_bag_scores_what_brute_force_over_all_assignments_does(seed, patches, d, sigma):
    bits, messages = _case(seed, patches, d)
    found = bag_scores(bits, messages, sigma=sigma)
    for i, j in itertools.product(range(len(bits)), range(len(messages))):
        # Every observed patch from any of the candidate's, with replacement: patches ** patches ways.
        ways = [
            math.exp(sum(_each(bits[i, a], messages[j, b], sigma) for a, b in enumerate(way)))
            for way in itertools.product(range(patches), repeat=patches)
        ]
        assert math.isclose(float(found[i, j]), math.log(sum(ways) / len(ways)), rel_tol=1e-9, abs_tol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, sigma=st.sampled_from([None, 0.5]))
def test_the_order_of_patches_does_not_count(seed, sigma):
    bits, messages = _case(seed, 5, 6)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed + 1))
    kept = bag_scores(bits, messages, sigma=sigma)
    torch.testing.assert_close(bag_scores(bits[:, order], messages, sigma=sigma), kept)
    torch.testing.assert_close(bag_scores(bits, messages[:, order], sigma=sigma), kept)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, d=st.integers(1, 12), sigma=st.sampled_from([0.2, 1.0, 5.0]))
def test_a_bag_of_one_patch_is_plain_matching(seed, d, sigma):
    bits, messages = _case(seed, 1, d)
    plain = likelihood_scores(bits[:, 0], messages[:, 0], sigma=sigma)
    torch.testing.assert_close(bag_scores(bits, messages, sigma=sigma), plain)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, looks=st.integers(1, 6), sigma=st.sampled_from([0.2, 1.0, 5.0]))
def test_plain_matching_is_a_naive_sum_over_looks_and_bits(seed, looks, sigma):
    generator = torch.Generator().manual_seed(seed)
    messages = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    bits = (torch.randint(0, 2, (looks, 2, 7), generator=generator) * 2 - 1).double()
    found = likelihood_scores(bits.mean(0), messages, sigma=sigma, looks=looks)
    for i, j in itertools.product(range(2), range(3)):
        naive = torch.special.log_ndtr(bits[:, i] * messages[j] / sigma).sum()
        assert math.isclose(float(found[i, j]), float(naive), rel_tol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    seed=seeds,
    k=st.integers(1, 3),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    patch=st.integers(1, 4),
)
def test_patches_are_the_map_cut_up(seed, k, rows, columns, patch):
    maps = torch.randn(2, k, rows * patch, columns * patch, generator=torch.Generator().manual_seed(seed))
    cut = patches_of(maps, patch)
    assert cut.shape == (2, rows * columns, k * patch * patch)
    for row, column in itertools.product(range(rows), range(columns)):
        there = maps[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        assert torch.equal(cut[:, row * columns + column], there.flatten(1))
