"""MNIST and Fashion-MNIST in their IDX files, gzipped or not.

The format: two zero bytes, the element type (8: unsigned bytes), the number of axes, each axis as a
big-endian 32-bit number, the elements in C order (LeCun, http://yann.lecun.com/exdb/mnist/; Xiao, Rasul &
Vollgraf 2017, arXiv 1708.07747).
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from delta.data.records import Dataset, DataSplits
from delta.data.resize import padded
from delta.errors import DataError

__all__ = ["DIGITS", "FASHION", "is_idx_folder", "load_idx", "read_idx"]

DIGITS = tuple(str(digit) for digit in range(10))
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


_MAX_BYTES = 1 << 30
"""Larger files are refused by their header: a small gzip file can unpack to any size."""


def is_idx_folder(root: Path) -> bool:
    """Whether a folder holds IDX training images."""
    return _find(root, "train-images-idx3-ubyte") is not None


def load_idx(
    root: Path,
    *,
    name: str,
    class_names: Sequence[str] = DIGITS,
    size: tuple[int, int] = (32, 32),
    seed: int = 0,
) -> DataSplits:
    """Read `{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]` from a folder.

    Args:
        root: the folder.
        name: of the data, for reports.
        class_names: in label order.
        size: `(height, width)` to which the images are padded with black.
        seed: of the record ids.

    Raises:
        DataError: a file is absent, damaged or not of that format, or the counts disagree.
    """
    train = _part(root, "train", name, class_names, size, seed)
    return DataSplits(train, _part(root, "t10k", name, class_names, size, seed))


def read_idx(path: Path, *, axes: int) -> Tensor:
    """One IDX file of unsigned bytes with the given number of axes, as a uint8 tensor.

    Raises:
        DataError: the file is absent, damaged or not of that format.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            shape = _header(path, file, axes)
            body = file.read(math.prod(shape) + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror})") from None
    if len(body) != math.prod(shape):
        size = "longer" if len(body) > math.prod(shape) else "shorter"
        raise DataError(
            f"{path}: {size} than the {'×'.join(map(str, shape))} bytes of its header; fetch it again"
        )
    return torch.from_numpy(np.frombuffer(bytearray(body), dtype=np.uint8).reshape(shape))


def _header(path: Path, file: _Readable, axes: int) -> tuple[int, ...]:
    header = file.read(4 * (axes + 1))
    if len(header) != 4 * (axes + 1) or header[:4] != bytes((0, 0, 8, axes)):
        raise DataError(
            f"{path}: not an IDX file of unsigned bytes with {axes} axes (it starts "
            f"{header[:4].hex() or 'empty'}, expected 000008{axes:02x})"
        )
    shape = struct.unpack(f">{axes}I", header[4:])
    if math.prod(shape) == 0 or math.prod(shape) > _MAX_BYTES:
        raise DataError(
            f"{path}: its header declares {'×'.join(map(str, shape))} bytes; expected 1 to {_MAX_BYTES}"
        )
    return shape


def _part(
    root: Path, part: str, name: str, class_names: Sequence[str], size: tuple[int, int], seed: int
) -> Dataset:
    paths = []
    for file in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
        path = _find(root, file)
        if path is None:
            raise DataError(
                f"{root / file}.gz: no such file; a folder of IDX files needs images and labels of both"
            )
        paths.append(path)
    images, labels = read_idx(paths[0], axes=3), read_idx(paths[1], axes=1)
    if len(images) != len(labels):
        raise DataError(f"{paths[1]}: {len(labels)} labels for {len(images)} images; fetch both files again")
    if int(labels.max()) >= len(class_names):
        raise DataError(f"{paths[1]}: a label is not below the number of classes, {len(class_names)}")
    return Dataset.of(
        name=name,
        pixels=padded(images.unsqueeze(1), size, what=str(paths[0])),
        labels=labels.to(torch.int64),
        class_names=class_names,
        seed=seed,
    )


def _find(root: Path, file: str) -> Path | None:
    return next((path for path in (root / f"{file}.gz", root / file) if path.is_file()), None)
