"""Image folders: `train/<class>/*.jpg|png` and `test/<class>/*.jpg|png`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from delta.data.images import is_grey, load_pixels
from delta.data.records import Dataset, DataSplits, proportional_limit, stratified
from delta.errors import DataError

__all__ = ["is_image_folder", "load_image_folder"]

_SUFFIXES = (".jpeg", ".jpg", ".png")
_THREADED_FROM = 32 * 1024  # bytes of the first file


def is_image_folder(root: Path) -> bool:
    """Whether a path looks like an image folder."""
    return (root / "train").is_dir()


def load_image_folder(
    root: Path,
    *,
    limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
) -> DataSplits:
    """Read an image folder into memory.

    Args:
        root: holds `train/<class>/` and `test/<class>/`, the same classes in both.
        limit: at most so many training images, each class in proportion.
        test_limit: the same for test images; by default they are cut in the same proportion.
        seed: of the choice, the order and the ids; which files are chosen depends on their names alone.
        size: `(height, width)` to resize to; none takes the first image's, and the others must have it too.
        channels: 3 or 1; none means 1 where the first image of every class is greyscale, else 3.

    Raises:
        DataError: a class folder is absent or empty, the classes differ, or the sizes do.
        InputError: an image is damaged or has other channels; the message names the file.
    """
    class_names, train = _listing(root, "train")
    test_names, test = _listing(root, "test")
    if test_names != class_names:
        odd = sorted(set(class_names) ^ set(test_names))[0]
        where = "test" if odd in class_names else "train"
        raise DataError(
            f"{root / where / odd}: no such class folder; train/ and test/ must have the same classes"
        )
    if channels is None:
        firsts = {label: path for path, label in reversed(train)}
        channels = 1 if all(is_grey(path) for path in firsts.values()) else 3
    if test_limit is None:
        test_limit = proportional_limit(limit, len(train), len(test), len(class_names))
    splits = [
        _read(root, _chosen(files, cap, seed=seed, what=str(root / part)), class_names, seed, size, channels)
        for part, files, cap in (("train", train, limit), ("test", test, test_limit))
    ]
    return DataSplits(*splits)


def _listing(root: Path, part: str) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """Class names, and (file, label) of every image, both sorted by name."""
    folder = root / part
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; expected train/<class>/ and test/<class>/ with jpg or png files"
        )
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    if len(classes) < 2:
        raise DataError(
            f"{folder}: {len(classes)} class folders, expected at least 2; put images in {part}/<class>/"
        )
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        images = sorted(
            entry.name
            for entry in os.scandir(folder / name)
            if entry.name.lower().endswith(_SUFFIXES) and entry.name[0] != "." and entry.is_file()
        )
        if not images:
            raise DataError(
                f"{folder / name}: no jpg or png files; add images or remove the class from both parts"
            )
        files.extend((folder / name / image, label) for image in images)
    return tuple(classes), files


def _chosen(
    files: list[tuple[Path, int]], limit: int | None, *, seed: int, what: str
) -> list[tuple[Path, int]]:
    """At most `limit` files, each class in proportion, in a seeded order."""
    labels = torch.tensor([label for _, label in files])
    count = len(files) if limit is None else min(limit, len(files))
    return [files[i] for i in stratified(labels, count, seed=seed, what=what).tolist()]


def _read(
    root: Path,
    files: Sequence[tuple[Path, int]],
    class_names: tuple[str, ...],
    seed: int,
    size: tuple[int, int] | None,
    channels: int,
) -> Dataset:
    paths = [path for path, _ in files]
    images = _load_all(paths, partial(load_pixels, channels=channels, size=size))
    return Dataset.of(
        name=root.name or str(root),
        pixels=_stacked(paths, images),
        labels=torch.tensor([label for _, label in files]),
        class_names=class_names,
        seed=seed,
    )


def _load_all(paths: Sequence[Path], load: Callable[[Path], Tensor]) -> list[Tensor]:
    """Load in threads where decoding is long enough to pay; over thumbnails they only fight for the lock."""
    if paths[0].stat().st_size < _THREADED_FROM:
        return [load(path) for path in paths]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            return list(pool.map(load, paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _stacked(paths: Sequence[Path], images: list[Tensor]) -> Tensor:
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"{path}: {image.shape[2]}×{image.shape[1]} pixels, the others have "
                f"{images[0].shape[2]}×{images[0].shape[1]}; give a size to resize to"
            )
    return torch.stack(images)
