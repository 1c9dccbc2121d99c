"""A data set of the user's own, by import path: a callable that returns training and test records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from delta.data.records import Dataset, DataSplits, Record
from delta.errors import DataError, DeltaError
from delta.importing import import_callable, one_line

__all__ = ["load_target"]

_MOST_CLASSES = 65_536
_Item = tuple[str | None, str, Any, Any]
"""(id, subject, image, label), of a stranger's making."""
_EXPECTED = "(train, test), each a delta Dataset or records (id, subject, image, label) or (image, label)"


def load_target(target: str, *, seed: int = 0) -> DataSplits:
    """Call `package.module:callable` and make a data set of what it returns.

    It returns `DataSplits`, or a pair of training and test records. Either part is a `Dataset`, or any iterable of
    `Record`, of `(record id, subject, image, label)` or of `(image, label)`: the image `[c, h, w]`, uint8 or
    floating in [0, 1]; the label a class name, or a number from 0.

    Args:
        target: the import path; also found from the current folder.
        seed: of record ids, where the records bring none.

    Raises:
        DataError: it cannot be imported, fails, or what it returns is no data set: a label is missing, a test
            label is of a class that has no training record, shapes differ.
    """
    build = import_callable(target, error=DataError)
    try:
        value = build()
    except DeltaError:
        raise
    except Exception as error:
        raise DataError(f"data target {target!r} failed: {one_line(error)}") from error
    if isinstance(value, DataSplits):
        return value
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise DataError(f"data target {target!r} returned {type(value).__name__}; it must return {_EXPECTED}")
    if all(isinstance(part, Dataset) for part in value):
        return DataSplits(*value)
    train, test = (
        _records(part, f"{target} {name}") for name, part in zip(("train", "test"), value, strict=True)
    )
    names = _class_names(train, target)
    like = train[0][3]
    return DataSplits(
        _dataset(train, names, f"{target} train", seed, like=like),
        _dataset(test, names, f"{target} test", seed, like=like),
    )


def _records(part: Any, what: str) -> list[_Item]:  # noqa: ANN401
    """Each record as (id, subject, image, label)."""
    if isinstance(part, Dataset):
        return [(r.id, r.subject, r.image, part.class_names[r.label]) for r in part]
    found: list[_Item] = []
    for index, item in enumerate(_items(part, what)):
        if isinstance(item, Record):
            found.append((item.id, item.subject, item.image, item.label))
        elif isinstance(item, Sequence) and len(item) == 4:
            name, subject = (None if field is None else str(field) for field in item[:2])
            found.append((name, subject or "", item[2], item[3]))
        elif isinstance(item, Sequence) and len(item) == 2:
            found.append((None, "", item[0], item[1]))
        else:
            raise DataError(f"data {what}: record {index} is {type(item).__name__}; expected {_EXPECTED}")
        image, label = found[-1][2:]
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(np.ascontiguousarray(image))
            found[-1] = (*found[-1][:2], image, label)
        if not isinstance(image, Tensor) or image.dim() != 3:
            raise DataError(f"data {what}: record {index} has no image: give a tensor or an array [c, h, w]")
        if _is_number(label):
            found[-1] = (*found[-1][:3], int(label))
        elif not isinstance(label, str):
            raise DataError(
                f"data {what}: record {index} has no label; give each a class name, or a number from 0"
            )
    if not found:
        raise DataError(f"data {what} has no records")
    return found


def _items(part: Any, what: str) -> list[Any]:  # noqa: ANN401
    """The records of a part, in order: of an iterable, or of what has a length and is indexed."""
    try:
        if isinstance(part, Iterable):
            return list(part)
        if hasattr(part, "__getitem__") and hasattr(part, "__len__"):  # as torch's own data sets are
            return [part[index] for index in range(len(part))]
    except DeltaError:
        raise
    except Exception as error:
        raise DataError(f"data {what} failed: {one_line(error)}") from error
    raise DataError(f"data {what} is {type(part).__name__}; expected {_EXPECTED}")


def _is_number(label: Any) -> bool:  # noqa: ANN401
    if isinstance(label, Tensor):
        return label.numel() == 1 and not label.is_floating_point() and label.dtype != torch.bool
    return isinstance(label, Integral) and not isinstance(label, bool)  # numpy's integers among them


def _class_names(train: list[_Item], target: str) -> tuple[str, ...]:
    labels = {label for *_, label in train}
    if all(isinstance(label, str) for label in labels):
        return tuple(sorted(labels))
    if all(isinstance(label, int) and 0 <= label < _MOST_CLASSES for label in labels):
        return tuple(str(index) for index in range(max(labels) + 1))
    raise DataError(
        f"data {target}: labels must be all class names, or all numbers from 0 and below {_MOST_CLASSES}"
    )


def _dataset(
    records: list[_Item], names: tuple[str, ...], what: str, seed: int, *, like: int | str
) -> Dataset:
    """A part as a data set; its labels are of the kind of `like`, a training label: names, or numbers."""
    numbers = isinstance(like, int)
    places: dict[Any, int] = {int(name) if numbers else name: index for index, name in enumerate(names)}
    for index, (*_, label) in enumerate(records):
        if label not in places:
            kind = "numbers" if numbers else "class names"
            raise DataError(
                f"data {what}: record {index} is of an unknown class; the training records have {len(names)} "
                f"classes, given as {kind}"
            )
    shape, dtype = records[0][2].shape, records[0][2].dtype
    if any(image.shape != shape or image.dtype != dtype for _, _, image, _ in records):
        raise DataError(f"data {what}: images differ in shape or type; bring them to one size first")
    pixels = torch.stack([image for _, _, image, _ in records])
    ids = [name for name, *_ in records]
    return Dataset.of(
        name=what.split(" ")[0],
        pixels=pixels if dtype == torch.uint8 else pixels.float(),
        labels=torch.tensor([places[label] for *_, label in records], dtype=torch.int64),
        class_names=names,
        seed=seed,
        ids=None if any(name is None for name in ids) else [str(name) for name in ids],
        subjects=[subject for _, subject, _, _ in records],
    )
