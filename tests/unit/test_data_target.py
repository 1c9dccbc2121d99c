"""Data sets of the user's own: every form that a target may return, and every fault in one line."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from delta.data.records import Dataset, DataSplits, Record
from delta.data.target import load_target
from delta.errors import DataError, InputError

MODULE = "a_users_records"


def image(seed: int, *, size: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.rand(1, size, size, generator=torch.Generator().manual_seed(seed))
    return drawn if dtype.is_floating_point else (drawn * 255).to(dtype)


def pairs(labels: list[Any], *, first: int = 0, **options: Any) -> list[tuple[Tensor, Any]]:
    return [(image(first + i, **options), label) for i, label in enumerate(labels)]


def dataset(labels: list[int], names: tuple[str, ...], *, first: int = 0) -> Dataset:
    return Dataset.of(
        name="theirs",
        pixels=torch.stack([image(first + i) for i in range(len(labels))]),
        labels=torch.tensor(labels),
        class_names=names,
    )


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[..., DataSplits]:
    """Load what a callable of a real module returns."""
    module = types.ModuleType(MODULE)
    monkeypatch.setitem(sys.modules, MODULE, module)

    def loaded(value: Any, *, seed: int = 0) -> DataSplits:
        module.records = value if callable(value) else lambda: value
        return load_target(f"{MODULE}:records", seed=seed)

    return loaded


# Forms


def test_splits_are_taken_as_they_are(load):
    splits = DataSplits(dataset([0, 1], ("a", "b")), dataset([1], ("a", "b"), first=5))
    assert load(splits) is splits
    pair = load((splits.train, splits.test))
    assert (pair.train, pair.test) == (splits.train, splits.test)


@pytest.mark.parametrize("kind", [tuple, list])
def test_pairs_get_opaque_ids_and_unknown_subjects(load, kind):
    found = load(kind([pairs(["dog", "cat", "dog"]), pairs(["cat"], first=9)]))
    assert found.class_names == ("cat", "dog")
    assert found.train.labels.tolist() == [1, 0, 1]
    assert found.test.labels.tolist() == [0]
    assert set(found.train.subjects) == {""}
    assert len(set(found.train.ids)) == 3
    assert not any("dog" in name or len(name) != 32 for name in found.train.ids)
    assert torch.equal(found.train.images[1], image(1))
    assert found.train.ids == load((pairs(["dog", "cat", "dog"]), pairs(["cat"]))).train.ids
    assert found.train.ids != load((pairs(["dog", "cat", "dog"]), pairs(["cat"])), seed=1).train.ids


def test_named_records_keep_their_names_and_subjects(load):
    rows = [("r1", "ada", image(0), 0), ("r2", None, image(1), 2), (3, 7, image(2), 1)]
    found = load((rows, [("t", "bo", image(4), 2)]))
    assert found.train.ids == ("r1", "r2", "3")
    assert found.train.subjects == ("ada", "", "7")
    assert found.class_names == ("0", "1", "2")
    assert found.test.subjects == ("bo",)
    unnamed = load(([(None, "ada", image(0), 0), (None, "bo", image(1), 1)], rows[:1]))
    assert unnamed.train.subjects == ("ada", "bo")
    assert len(set(unnamed.train.ids) | {"None"}) == 3


def test_records_of_ours_are_taken(load):
    rows = [Record(id=f"r{i}", subject="s", image=image(i), label=i % 2) for i in range(4)]
    found = load((rows, rows[:1]))
    assert found.train.ids == ("r0", "r1", "r2", "r3")
    assert found.train.labels.tolist() == [0, 1, 0, 1]


class _Indexed:
    """As torch's own data sets are: a length, and records by index."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        if index >= len(self._rows):
            raise RuntimeError("beyond the end")
        return self._rows[index]


def test_generators_and_indexed_data_sets_are_read(load):
    def generated() -> Any:
        return (item for item in pairs([0, 1, 1])), _Indexed(pairs([1], first=7))

    found = load(generated)
    assert (len(found.train), len(found.test)) == (3, 1)
    wrapped = torch.utils.data.TensorDataset(torch.rand(4, 1, 8, 8), torch.arange(4) % 2)
    assert load((wrapped, wrapped)).train.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, torch.tensor, lambda i: torch.tensor([i])])
def test_numbers_may_be_of_any_whole_type(load, kind):
    found = load((pairs([kind(i) for i in (0, 1, 2)]), pairs([kind(2)])))
    assert found.train.labels.tolist() == [0, 1, 2]
    assert found.test.labels.tolist() == [2]


def test_numbers_that_are_not_used_are_classes_too(load):
    found = load((pairs([0, 11, 2]), pairs([11])))
    assert len(found.class_names) == 12
    assert found.test.labels.tolist() == [11]


def test_whole_pixels_stay_bytes_and_real_ones_become_float32(load):
    assert (
        load((pairs([0, 1], dtype=torch.uint8), pairs([1], dtype=torch.uint8))).train.pixels.dtype
        == torch.uint8
    )
    assert load((pairs([0, 1], dtype=torch.float64), pairs([1]))).train.pixels.dtype == torch.float32


def test_a_data_set_beside_records_goes_by_class_names(load):
    """A data set's numbers are places among its own names, which another part cannot know."""
    ours = dataset([0, 1], ("zebra", "ant"))
    found = load((ours, pairs(["zebra"], first=5)))
    assert found.class_names == ("ant", "zebra")
    assert found.train.labels.tolist() == [1, 0]
    assert found.test.labels.tolist() == [1]
    assert found.train.ids == ours.ids
    many = tuple(str(i) for i in range(11))
    assert load((dataset(list(range(11)), many), pairs(["10"]))).test.labels.tolist() == [2]  # sorted as text


# Faults


CASES: dict[str, tuple[Any, str]] = {
    "nothing": (None, "returned NoneType; it must return"),
    "one part": ((pairs([0]),), "returned tuple; it must return"),
    "three parts": ((pairs([0]), pairs([0]), pairs([0])), "returned tuple"),
    "a part is no collection": ((pairs([0]), 7), "test is int; expected"),
    "no training records": (([], pairs([0])), "train has no records"),
    "no test records": ((pairs([0]), []), "test has no records"),
    "a record is no pair": (([(image(0), 0), image(1)], pairs([0])), "train: record 1 is Tensor; expected"),
    "a record of three": (([("a", image(0), 0)], pairs([0])), "train: record 0 is tuple; expected"),
    "no image": (([(image(0), 0), (None, 1)], pairs([0])), "train: record 1 has no image"),
    "a flat image": (([(image(0)[0], 0)], pairs([0])), "train: record 0 has no image"),
    "a missing label": ((pairs([0, None, 1]), pairs([0])), "train: record 1 has no label"),
    "a label that is true": ((pairs([0, True]), pairs([0])), "train: record 1 has no label"),
    "a label that is a tensor of truth": ((pairs([torch.tensor(True)]), pairs([0])), "record 0 has no label"),
    "a real label": ((pairs([0.0]), pairs([0])), "train: record 0 has no label"),
    "labels as a row": ((pairs([torch.tensor([0, 1])]), pairs([0])), "train: record 0 has no label"),
    "a missing test label": ((pairs([0, 1]), pairs([0, None])), "test: record 1 has no label"),
    "names and numbers": ((pairs([0, "cat"]), pairs([0])), "all class names, or all numbers"),
    "a negative number": ((pairs([0, -1]), pairs([0])), "all numbers from 0"),
    "a number out of all proportion": ((pairs([0, 10**12]), pairs([0])), "below 65536"),
    "an unknown name": (
        (pairs(["cat", "dog"]), pairs(["cat", "cow"])),
        "test: record 1 is of an unknown class",
    ),
    "an unknown number": ((pairs([0, 1]), pairs([2])), "test: record 0 is of an unknown class"),
    "numbers to names": ((pairs(["cat", "dog"]), pairs([0])), "2 classes, given as class names"),
    "names to numbers": ((pairs([0, 1]), pairs(["0"])), "2 classes, given as numbers"),
    "numbers to a data set": ((dataset([0, 1], ("b", "a")), pairs([0])), "given as class names"),
    "shapes differ": ((pairs([0]) + pairs([1], size=6), pairs([0])), "train: images differ in shape or type"),
    "types differ": (
        (pairs([0]) + pairs([1], dtype=torch.uint8), pairs([0])),
        "images differ in shape or type",
    ),
    "parts differ in shape": (
        (pairs([0, 1]), pairs([0], size=6)),
        r"train has 2 classes of images \(1, 8, 8\)",
    ),
    "pixels out of range": ((pairs([0, 1], dtype=torch.int64), pairs([0])), r"must lie in \[0, 1\]; divide"),
    "NaN": (([(image(0) * torch.nan, 0)], pairs([0])), r"must lie in \[0, 1\]"),
    "one name twice": (([("a", "", image(i), i) for i in (0, 1)], pairs([0])), "must be different"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_one_line_that_says_where(load, name):
    value, words = CASES[name]
    with pytest.raises(DataError, match=words) as caught:
        load(value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def _breaks() -> Iterator[Any]:
    yield image(0), 0
    raise OSError("disk is gone\nat line 3")


def _refuses() -> Any:
    raise KeyError("folder")


class _Breaking(_Indexed):
    def __getitem__(self, index: int) -> Any:
        raise OSError("disk is gone\nat line 3")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (_refuses, "target 'a_users_records:records' failed: KeyError: 'folder'"),
        (lambda: (_breaks(), pairs([0])), "train failed: OSError: disk is gone"),
        (lambda: (pairs([0]), _Breaking([0])), "test failed: OSError: disk is gone"),
        (lambda needed: needed, "failed: TypeError"),
    ],
)
def test_a_target_that_fails_at_once_or_on_the_way_is_one_line(load, value, words):
    with pytest.raises(DataError, match=words) as caught:
        load(value)
    assert "\n" not in str(caught.value)


def test_an_error_of_ours_comes_through_as_it_is(load):
    def damaged() -> Any:
        raise InputError("picture 7 is damaged")

    with pytest.raises(InputError, match=r"^picture 7 is damaged$"):
        load(damaged)


def test_a_target_that_is_not_there_is_refused(load):
    load((pairs([0, 1]), pairs([0])))
    with pytest.raises(DataError, match=r"no callable 'record'; did you mean records\?"):
        load_target(f"{MODULE}:record")
    with pytest.raises(DataError, match="'no_such_module_of_anyone' cannot be imported"):
        load_target("no_such_module_of_anyone:records")


def test_a_target_is_found_from_the_folder_that_it_is_in(tmp_path, monkeypatch):
    (tmp_path / "a_module_beside.py").write_text(
        "import torch\n"
        "def records():\n"
        "    part = [(torch.zeros(1, 8, 8), name) for name in 'ab']\n"
        "    return part, part\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    try:
        assert load_target("a_module_beside:records").class_names == ("a", "b")
    finally:
        sys.modules.pop("a_module_beside", None)
    assert sys.path == path
