"""Layouts against brute force: patches, permutations of one chance each, inverses, and what the key decides."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from delta.errors import InputError
from delta.release.ids import ReleaseIdentity
from delta.release.layout import (
    Arrangement,
    arranged,
    arrangement_of,
    cut,
    join,
    mirrored,
    pack_patches,
    random_arrangement,
    restored,
    unpack_patches,
    words_for,
)
from delta.release.noise import NoiseKey

seeds = st.integers(0, 2**31)
KEY = NoiseKey(bytes(range(32)))


def _words(seed, records, patches):
    drawn = np.random.default_rng(seed).integers(0, 2**64, (records, words_for(patches)), dtype=np.uint64)
    return torch.from_numpy(drawn)


def _bits(seed, *shape):
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds,
    k=st.integers(1, 3),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    patch=st.integers(1, 4),
    mirror=st.booleans(),
)
def test_what_is_shuffled_is_the_same_bits_and_the_inverse_restores_them(
    seed, k, rows, columns, patch, mirror
):
    maps = _bits(seed, 3, k, rows * patch, columns * patch)
    patches = cut(maps, patch)
    assert torch.equal(join(patches, (rows * patch, columns * patch)), maps)
    found = arrangement_of(_words(seed, 3, rows * columns), patches=rows * columns, mirror=mirror)
    sent = arranged(patches, found)
    assert torch.equal(restored(sent, found), patches)
    assert torch.equal(sent.sum((1, 3, 4)), patches.sum((1, 3, 4)))  # no bit is lost or made
    assert torch.equal(found.order.sort(dim=1).values, torch.arange(rows * columns).expand(3, -1))
    if not mirror:
        assert not found.mirrors.any()
    for record, place in itertools.product(range(3), range(rows * columns)):  # by the book
        one = patches[record, found.order[record, place]]
        for axis, turn in zip((-1, -2), found.mirrors[record, place], strict=True):
            one = one.flip(axis) if bool(turn) else one
        assert torch.equal(sent[record, place], one)


@settings(max_examples=30, deadline=None)
@given(
    seed=seeds,
    k=st.integers(1, 3),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    patch=st.integers(1, 3),
)
def test_bytes_are_patch_after_patch_and_as_many_as_of_a_kept_layout(seed, k, rows, columns, patch):
    shape = (k, rows * patch, columns * patch)
    maps = _bits(seed, 2, *shape)
    packed = pack_patches(maps, patch=patch)
    assert packed.shape == (2, math.ceil(math.prod(shape) / 8))
    assert torch.equal(unpack_patches(packed, shape, patch=patch), maps)
    naive = [
        maps[0, channel, row * patch + i, column * patch + j]
        for row, column in itertools.product(range(rows), range(columns))
        for channel, i, j in itertools.product(range(k), range(patch), range(patch))
    ]
    assert packed[0].tolist() == np.packbits(np.array(naive)).tolist()


@pytest.mark.parametrize("patches", [2, 3, 4])
def test_every_permutation_has_one_chance(patches):
    n = 24_000
    found = arrangement_of(_words(7, n, patches), patches=patches, mirror=True)
    counts = Counter(map(tuple, found.order.tolist()))
    expected = n / math.factorial(patches)
    assert len(counts) == math.factorial(patches)
    # A chi-square statistic beyond its mean by 5 standard deviations has a chance below 1e-4, and the seed is fixed.
    degrees = len(counts) - 1
    chi = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi < degrees + 5 * math.sqrt(2 * degrees)
    shares = found.mirrors.double().mean(0)
    assert float((shares - 0.5).abs().max()) < 5 * 0.5 / math.sqrt(n)
    flat = found.mirrors.flatten(1).double()
    assert float((flat.T.corrcoef() - torch.eye(2 * patches)).abs().max()) < 5 / math.sqrt(n)


def test_a_word_that_would_favour_some_places_is_rejected():
    drawn = np.zeros((2, words_for(3)), dtype=np.uint64)
    drawn[0, 1] = 2**64 - 1  # 2⁶⁴ is no multiple of 3: this one belongs to no equal share
    words = torch.from_numpy(drawn)
    found = arrangement_of(words, patches=3, mirror=False)
    assert torch.equal(found.order[0], found.order[1])
    with pytest.raises(InputError, match="used up"):
        arrangement_of(torch.from_numpy(~np.zeros_like(drawn)), patches=3, mirror=False)
    with pytest.raises(InputError, match="random words"):
        arrangement_of(words[:, :2], patches=3, mirror=False)


def test_the_key_and_everything_that_makes_a_release_decide_its_order_and_not_its_noise():
    first = ReleaseIdentity("person", "record", b"d" * 32, "h" * 64, "delta/one-bit-shuffled/1")
    others = [
        ReleaseIdentity("other", *list(vars(first).values())[1:]),
        ReleaseIdentity("person", "other", b"d" * 32, "h" * 64, first.mechanism),
        ReleaseIdentity("person", "record", b"e" * 32, "h" * 64, first.mechanism),
        ReleaseIdentity("person", "record", b"d" * 32, "i" * 64, first.mechanism),
        ReleaseIdentity("person", "record", b"d" * 32, "h" * 64, "delta/one-bit/1"),
    ]
    words = KEY.batch_layouts([first, *others, first], words_for(64))
    assert torch.equal(words[0], words[-1])
    assert torch.equal(words[0], NoiseKey(bytes(range(32))).batch_layouts([first], words_for(64))[0])
    for row in [
        *words[1:-1],
        KEY.uniforms(first, words_for(64)),
        NoiseKey(bytes(32)).batch_layouts([first], 73)[0],
    ]:
        assert not bool((row == words[0]).any())


@settings(max_examples=20, deadline=None)
@given(seed=seeds, patches=st.integers(1, 9), mirror=st.booleans())
def test_an_attackers_own_arrangements_are_arrangements(seed, patches, mirror):
    generator = torch.Generator().manual_seed(seed)
    found = random_arrangement(
        5, patches=patches, mirror=mirror, generator=generator, device=torch.device("cpu")
    )
    assert torch.equal(found.order.sort(dim=1).values, torch.arange(patches).expand(5, -1))
    assert mirror or not found.mirrors.any()
    sides = _bits(seed, 5, patches, 2).bool()
    maps = _bits(seed, 5, patches, 2, 3, 3)
    assert torch.equal(mirrored(mirrored(maps, sides), sides), maps)
    assert torch.equal(restored(arranged(maps, found), found), maps)
    assert isinstance(found.to(torch.device("cpu")), Arrangement)


def test_a_patch_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="does not divide 6×4"):
        cut(torch.zeros(1, 1, 6, 4), 4)
