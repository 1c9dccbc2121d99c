"""CIFAR-10 and CIFAR-100 in their standard *binary* archives; the python version is pickled and refused.

CIFAR-10: records of one label byte and 3,072 pixel bytes; CIFAR-100: a coarse label, a fine label, and the
pixels; 32×32, planes of red, green and blue (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from __future__ import annotations

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from delta.data.download import Download, download
from delta.data.records import Dataset, DataSplits
from delta.errors import DataError

__all__ = ["CIFAR10", "CIFAR100", "CifarLayout", "cifar_layout_of", "download_cifar", "load_cifar"]

_PIXELS = 3 * 32 * 32
_MAX_RECORDS = 50_000
"""Of one file; a larger one is no CIFAR file, whatever its name says."""


@dataclass(frozen=True)
class CifarLayout:
    """What one of the two archives holds.

    Attributes:
        name: of the data, for reports.
        source: the official archive. The site publishes its MD5; the SHA-256 is of that same file.
        folder: inside the archive.
        train: names of the training files.
        test: name of the test file.
        names: name of the file of class names, one a line.
        classes: how many.
        label_bytes: in front of each record's pixels; the last of them is the label.
        pickled: names of files that give the python version away.
        pickled_folder: inside the archive of the python version.
    """

    name: str
    source: Download
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    classes: int
    label_bytes: int
    pickled: frozenset[str]
    pickled_folder: str

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files needed."""
        return (*self.train, self.test, self.names)

    @property
    def record_bytes(self) -> int:
        """Bytes of one record."""
        return self.label_bytes + _PIXELS


CIFAR10 = CifarLayout(
    name="CIFAR-10",
    source=Download(  # MD5 c32a1d4ab5d03f1284b67883e8d87530
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test="test_batch.bin",
    names="batches.meta.txt",
    classes=10,
    label_bytes=1,
    pickled=frozenset({"data_batch_1", "batches.meta", "test_batch"}),
    pickled_folder="cifar-10-batches-py",
)

CIFAR100 = CifarLayout(
    name="CIFAR-100",
    source=Download(  # MD5 03b5dce01913d631647c71ecec9e9cb8
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    folder="cifar-100-binary",
    train=("train.bin",),
    test="test.bin",
    names="fine_label_names.txt",
    classes=100,
    label_bytes=2,
    pickled=frozenset({"train", "test", "meta"}),
    pickled_folder="cifar-100-python",
)

_LAYOUTS: dict[Literal[10, 100], CifarLayout] = {10: CIFAR10, 100: CIFAR100}


def download_cifar(layout: CifarLayout, folder: Path, *, source: Download | None = None) -> Path:
    """Fetch the archive into a folder, its checksum verified; `source` names another place to take it from.

    Raises:
        DataError: the transfer or the checksum failed; nothing half-written is left.
    """
    return download(source or layout.source, folder)


def load_cifar(path: Path, *, classes: Literal[10, 100], seed: int = 0) -> DataSplits:
    """Read CIFAR-10 or CIFAR-100 from its `.tar.gz`, or from a folder unpacked from it.

    Args:
        path: the archive, the folder `cifar-10-batches-bin` or `cifar-100-binary`, or one that holds either.
        classes: 10, or 100 (the fine labels).
        seed: of the record ids.

    Raises:
        DataError: a file is absent, damaged or of the pickled python version.
    """
    layout = _LAYOUTS[classes]
    archive = path / layout.source.file_name if path.is_dir() else path
    is_archive = not path.is_dir() or (archive.is_file() and _folder_in(path, layout) is None)
    contents = _read_archive(archive, layout) if is_archive else _read_folder(path, layout)
    missing = [name for name in layout.files if name not in contents]
    if missing:
        raise DataError(f"{path}: {', '.join(missing)} missing; get {layout.source.url}")
    class_names = _class_names(path, layout, contents[layout.names])
    train = b"".join(_whole(path, layout, name, contents[name]) for name in layout.train)
    test = _whole(path, layout, layout.test, contents[layout.test])
    return DataSplits(
        _dataset(path, layout, train, class_names, seed), _dataset(path, layout, test, class_names, seed)
    )


def cifar_layout_of(path: Path) -> CifarLayout | None:
    """Which CIFAR a folder or an archive's name looks like, if either."""
    for layout in (CIFAR100, CIFAR10):
        if path.is_dir():
            if _folder_in(path, layout) or (path / layout.source.file_name).is_file():
                return layout
        elif path.name.startswith(layout.name.lower()):
            return layout
    return None


def _folder_in(path: Path, layout: CifarLayout) -> Path | None:
    """The folder of the data files, the python version's included, so that it can be refused by name."""
    for folder in (path, path / layout.folder, path / layout.pickled_folder):
        if (folder / layout.test).is_file() or all((folder / name).is_file() for name in layout.pickled):
            return folder
    return None


def _read_folder(path: Path, layout: CifarLayout) -> dict[str, bytes]:
    folder = _folder_in(path, layout) or path
    try:
        present = {entry.name for entry in folder.iterdir()}
        _refuse_pickles(path, layout, present)
        wanted = [name for name in layout.files if name in present]
        for name in wanted:
            _check_size(path, layout, name, (folder / name).stat().st_size)
        return {name: (folder / name).read_bytes() for name in wanted}
    except OSError as error:
        raise DataError(f"{folder}: not readable ({error.strerror})") from None


def _read_archive(path: Path, layout: CifarLayout) -> dict[str, bytes]:
    """The wanted members by base name, in memory: nothing is unpacked, so no member can choose a place."""
    contents: dict[str, bytes] = {}
    seen: set[str] = set()
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                seen.add(name)
                if name in layout.files and name not in contents and member.isfile():
                    _check_size(path, layout, name, member.size)
                    file = archive.extractfile(member)
                    contents[name] = file.read() if file else b""
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; get {layout.source.url}") from None
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: truncated or damaged archive ({error}); get {layout.source.url} again"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: not a readable .tar.gz archive ({error.strerror or error})") from None
    _refuse_pickles(path, layout, seen)
    return contents


def _refuse_pickles(path: Path, layout: CifarLayout, present: set[str]) -> None:
    if layout.test not in present and present & layout.pickled:
        raise DataError(
            f"{path}: the python version of {layout.name}, which is pickled and can run code when opened; "
            f"get the binary version, {layout.source.url}"
        )


def _check_size(path: Path, layout: CifarLayout, name: str, size: int) -> None:
    if size > _MAX_RECORDS * layout.record_bytes:
        raise DataError(f"{path}: {name} has {size} bytes, more than any file of {layout.name}")


def _whole(path: Path, layout: CifarLayout, name: str, content: bytes) -> bytes:
    if not content or len(content) % layout.record_bytes:
        raise DataError(
            f"{path}: {name} has {len(content)} bytes, expected a multiple of {layout.record_bytes}; "
            f"get {layout.source.url} again"
        )
    return content


def _class_names(path: Path, layout: CifarLayout, content: bytes) -> tuple[str, ...]:
    names = tuple(content.decode("utf-8", errors="replace").split())
    if len(names) != layout.classes:
        raise DataError(f"{path}: {layout.names} has {len(names)} class names, expected {layout.classes}")
    return names


def _dataset(
    path: Path, layout: CifarLayout, content: bytes, class_names: tuple[str, ...], seed: int
) -> Dataset:
    rows = torch.from_numpy(
        np.frombuffer(bytearray(content), dtype=np.uint8).reshape(-1, layout.record_bytes)
    )
    labels = rows[:, layout.label_bytes - 1].to(torch.int64)
    if int(labels.max()) >= layout.classes:
        raise DataError(
            f"{path}: a label is not below {layout.classes}; this is not the binary {layout.name}"
        )
    return Dataset.of(
        name=layout.name,
        pixels=rows[:, layout.label_bytes :].reshape(-1, 3, 32, 32).contiguous(),
        labels=labels,
        class_names=class_names,
        seed=seed,
    )
