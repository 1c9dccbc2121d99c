"""The data set contract."""

import pytest
import torch

from delta.data.records import Dataset, DataSplits
from delta.errors import DataError


def dataset(per_class=(40, 40, 20), seed=0):
    labels = torch.cat([torch.full((n,), i) for i, n in enumerate(per_class)])
    pixels = torch.randint(0, 256, (len(labels), 1, 4, 4), generator=torch.Generator().manual_seed(9))
    return Dataset.of(
        name="toy", pixels=pixels.to(torch.uint8), labels=labels, class_names=["a", "b", "c"], seed=seed
    )


def test_records_are_as_declared():
    data = dataset()
    record = data[41]
    assert (record.label, record.subject, record.id) == (1, "", data.ids[41])
    assert record.image.dtype == torch.float32
    assert torch.equal(record.image, data.images[41])
    assert torch.equal((record.image * 255).round().to(torch.uint8), data.pixels[41])
    assert len(list(data)) == len(data) == 100
    assert data.image_shape == (1, 4, 4)


def test_ids_follow_content_and_seed_and_nothing_else():
    data = dataset()
    assert data.ids == dataset().ids
    assert not set(data.ids) & set(dataset(seed=1).ids)
    backwards = torch.arange(99, -1, -1)
    again = Dataset.of(
        name="renamed",
        pixels=data.pixels[backwards],
        labels=2 - data.labels,
        class_names=["x", "y", "z"],
    )
    assert again.ids == data.ids[::-1]
    twins = Dataset.of(
        name="twins", pixels=data.pixels[[0, 0, 0]], labels=torch.zeros(3, dtype=torch.int64), class_names="a"
    )
    assert len(set(twins.ids)) == 3
    assert twins.ids[0] == data.ids[0]


def test_a_limit_keeps_proportions_and_is_stable():
    data = dataset()
    small = data.limited(10, seed=3)
    assert small.labels.bincount().tolist() == [4, 4, 2]
    assert small.ids == data.limited(10, seed=3).ids
    assert small.ids != data.limited(10, seed=4).ids
    assert data.limited(None, seed=3) is data
    assert data.limited(100, seed=3) is data
    assert set(small.ids) <= set(data.limited(50, seed=3).ids)
    lookup = dict(zip(data.ids, data.labels.tolist(), strict=True))
    assert [lookup[i] for i in small.ids] == small.labels.tolist()
    assert small.labels.tolist() != sorted(small.labels.tolist())


def test_a_split_is_disjoint_whole_and_stratified():
    data = dataset()
    rest, kept = data.stratified_split(fraction=0.25, seed=1)
    assert kept.labels.bincount().tolist() == [10, 10, 5]
    assert sorted(rest.ids + kept.ids) == sorted(data.ids)
    assert rest.labels.tolist() != sorted(rest.labels.tolist())


def test_splits_are_limited_together():
    data = dataset()
    splits = DataSplits(data, data.limited(50, seed=0))
    assert len(splits.limited(20).test) == 10
    assert len(splits.limited(20, test_limit=3).test) == 3
    assert len(splits.limited(4).test) == 3  # one a class at least
    assert splits.limited(None).train is data


@pytest.mark.parametrize("count", [0, 2])
def test_fewer_records_than_classes_are_refused(count):
    with pytest.raises(DataError, match="one a class at least"):
        dataset().limited(count, seed=0)


@pytest.mark.parametrize("fraction", [0.0, 0.99, 1.0])
def test_a_split_that_empties_a_part_is_refused(fraction):
    with pytest.raises(DataError, match=r"'toy'.*(empties a class|one a class)"):
        dataset().stratified_split(fraction=fraction, seed=0)


GOOD = {
    "pixels": torch.zeros(2, 1, 4, 4),
    "labels": torch.tensor([0, 1]),
    "class_names": ("a", "b"),
    "ids": ("x", "y"),
    "subjects": ("", ""),
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pixels": torch.zeros(2, 4, 4)}, "uint8 or float32"),
        ({"pixels": torch.zeros(2, 1, 4, 4, dtype=torch.float64)}, "uint8 or float32"),
        ({"pixels": torch.full((2, 1, 4, 4), 255.0)}, "divide by 255"),
        ({"pixels": torch.full((2, 1, 4, 4), float("nan"))}, r"\[0, 1\]"),
        ({"labels": torch.tensor([0])}, "1 labels"),
        ({"labels": torch.tensor([0.0, 1.0])}, "int64"),
        ({"labels": torch.tensor([0, 2])}, r"\[0, 2\)"),
        ({"labels": torch.tensor([-1, 1])}, r"\[0, 2\)"),
        ({"ids": ("x", "x")}, "different"),
        ({"subjects": ("",)}, "1 subjects"),
    ],
)
def test_contradictions_are_refused(change, reason):
    assert len(Dataset(name="good", **GOOD)) == 2
    with pytest.raises(DataError, match=reason):
        Dataset(name="bad", **{**GOOD, **change})


def test_splits_must_agree():
    data = dataset()
    other = Dataset.of(name="o", pixels=data.pixels, labels=data.labels, class_names=["a", "b", "d"])
    with pytest.raises(DataError, match="must be the same"):
        DataSplits(data, other)
