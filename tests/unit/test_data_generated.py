"""Generated images: shape, count and classes as asked for, from a seed alone, and something to learn in them."""

from __future__ import annotations

import pytest
import torch

from delta.data.generated import is_generated, load_generated
from delta.data.load import load_dataset
from delta.errors import DataError


def test_shape_counts_and_classes_are_as_asked_for():
    data = load_generated("generated:7x3x12x20:100")
    assert data.image_shape == (3, 12, 20)
    assert (len(data.train), len(data.test)) == (100, 20)
    assert data.class_names == tuple(f"pattern-{i}" for i in range(7))
    assert data.train.pixels.dtype == torch.uint8
    counts = torch.bincount(data.train.labels, minlength=7)
    assert int(counts.max() - counts.min()) <= 1
    assert torch.bincount(data.test.labels, minlength=7).min() >= 2


def test_every_class_is_tested_even_where_a_fifth_would_not_do():
    data = load_generated("generated:9x1x8x8:45")
    assert sorted(data.test.labels.tolist()) == list(range(9))


def test_two_thousand_records_are_the_default():
    assert len(load_generated("generated:2x1x4x4").train) == 2000


def test_they_follow_the_seed_and_the_parts_share_no_image():
    first, again, other = (load_generated("generated:3x1x8x8:60", seed=seed) for seed in (0, 0, 1))
    assert first.train.fingerprint() == again.train.fingerprint()
    assert first.test.fingerprint() == again.test.fingerprint()
    assert first.train.fingerprint() != other.train.fingerprint()
    assert not set(first.train.ids) & set(first.test.ids)


def test_the_order_of_classes_tells_nothing():
    labels = load_generated("generated:4x1x8x8:400").train.labels
    assert 60 < int((labels[1:] == labels[:-1]).sum()) < 140  # of 399 neighbours a quarter


def test_the_nearest_class_mean_finds_the_class():
    data = load_generated("generated:4x3x16x16:400")
    x, y = data.train.images.flatten(1), data.train.labels
    means = torch.stack([x[y == label].mean(0) for label in range(4)])
    found = torch.cdist(data.test.images.flatten(1), means).argmin(1)
    assert float((found == data.test.labels).double().mean()) > 0.6


def test_they_are_loaded_by_name_limited_and_resized():
    data = load_dataset("generated:3x1x8x8:60", limit=30, size=(12, 12))
    assert (len(data.train), data.image_shape) == (30, (1, 12, 12))
    assert is_generated("generated:")
    assert not is_generated("embedded")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("generated:", "write generated:CLASSES"),
        ("generated:3x1x8", "write generated:CLASSES"),
        ("generated:3x1x8x8:", "write generated:CLASSES"),
        ("generated:3x1x8x8:5:5", "write generated:CLASSES"),
        ("generated:-3x1x8x8", "write generated:CLASSES"),
        ("generated:1x1x8x8", "write generated:CLASSES"),
        ("generated:1001x1x8x8", "write generated:CLASSES"),
        ("generated:3x0x8x8", "write generated:CLASSES"),
        ("generated:3x1x3x8", "write generated:CLASSES"),
        ("generated:3x1x8x1025", "write generated:CLASSES"),
        ("generated:3x1x8x8:14", "give 15 to 100000"),
        ("generated:3x1x8x8:100001", "give 15 to 100000"),
        ("generated:900x1x8x8", "give 4500 to 100000"),
    ],
)
def test_a_source_that_is_none_is_refused_in_one_line(spec, words):
    with pytest.raises(DataError, match=words) as caught:
        load_dataset(spec)
    assert "\n" not in str(caught.value)
    assert repr(spec) in str(caught.value)
