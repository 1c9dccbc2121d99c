"""One way to name a data set, on the command line and in a configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from delta.data.cifar import CIFAR10, CIFAR100, cifar_layout_of, download_cifar, load_cifar
from delta.data.embedded import load_embedded
from delta.data.generated import is_generated, load_generated
from delta.data.idx import DIGITS, FASHION, is_idx_folder, load_idx
from delta.data.image_folder import is_image_folder, load_image_folder
from delta.data.records import DataSplits
from delta.data.resize import resized
from delta.errors import DataError

__all__ = ["SPECS", "download_dataset", "load_dataset"]

SPECS = (
    "embedded, cifar10:PATH, cifar100:PATH, fashion-mnist:PATH, mnist:PATH, generated:CLASSESxCHANNELSxHEIGHTxWIDTH, "
    "or the path of one of these"
)
"""What `load_dataset` takes, for help texts."""

_BY_PREFIX: dict[str, Callable[[Path, int], DataSplits]] = {
    "cifar10": lambda path, seed: load_cifar(path, classes=10, seed=seed),
    "cifar100": lambda path, seed: load_cifar(path, classes=100, seed=seed),
    "fashion-mnist": lambda path, seed: load_idx(path, name="Fashion-MNIST", class_names=FASHION, seed=seed),
    "mnist": lambda path, seed: load_idx(path, name="MNIST", class_names=DIGITS, seed=seed),
}


def load_dataset(
    spec: str,
    *,
    limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
    size: tuple[int, int] | None = None,
) -> DataSplits:
    """Load a data set by name or path.

    Args:
        spec: `embedded`; `cifar10:PATH` or `cifar100:PATH` (archive or folder, binary version);
            `fashion-mnist:PATH` or `mnist:PATH` (folder of IDX files);
            `generated:CLASSESxCHANNELSxHEIGHTxWIDTH`; or a path, which may also be an image
            folder `train/<class>/`, `test/<class>/`.
        limit: at most so many training records, each class in proportion.
        test_limit: the same for test records; by default they are cut in the same proportion.
        seed: of the choice and the record ids.
        size: `(height, width)` to resample to; none keeps the data's own (greyscale digits: 32×32, padded).

    Raises:
        DataError: there is no such data set, or it is incomplete or damaged.
        InputError: an image of it is damaged or has other channels.
    """
    if size is not None and min(size) < 1:
        raise DataError(f"size {size[0]}×{size[1]} is not valid: give a height and a width of at least 1")
    prefix, colon, rest = spec.partition(":")
    path = Path(spec).expanduser()
    if colon and prefix in _BY_PREFIX:
        data = _BY_PREFIX[prefix](Path(rest).expanduser(), seed)
    elif spec == "embedded":
        data = load_embedded(seed=seed)
    elif is_generated(spec):
        data = load_generated(spec, seed=seed)
    elif is_image_folder(path):
        return load_image_folder(path, limit=limit, test_limit=test_limit, seed=seed, size=size)
    else:
        data = _by_content(path, spec, seed)
    limited = data.limited(limit, test_limit=test_limit, seed=seed)
    return limited if size is None else resized(limited, size)


def _by_content(path: Path, spec: str, seed: int) -> DataSplits:
    if not path.exists():
        raise DataError(f"{spec}: no such data set or path; expected {SPECS}")
    if path.is_dir() and is_idx_folder(path):
        fashion = "fashion" in path.resolve().name.lower()
        return _BY_PREFIX["fashion-mnist" if fashion else "mnist"](path, seed)
    layout = cifar_layout_of(path)
    if layout is not None:
        return load_cifar(path, classes=100 if layout.classes == 100 else 10, seed=seed)
    raise DataError(
        f"{spec}: not a known data set; expected train/<class>/ and test/<class>/ folders, or {SPECS}"
    )


def download_dataset(spec: str) -> Path:
    """Fetch the official archive of `cifar10:FOLDER` or `cifar100:FOLDER` into the folder, checksum verified.

    Returns:
        The archive's path; one that is there already and whole is kept.

    Raises:
        DataError: another data set, or the transfer or the checksum failed; nothing half-written is left.
    """
    prefix, colon, folder = spec.partition(":")
    layout = {"cifar10": CIFAR10, "cifar100": CIFAR100}.get(prefix)
    if layout is None or not colon or not folder:
        raise DataError(f"data set {spec!r} cannot be downloaded; give cifar10:FOLDER or cifar100:FOLDER")
    return download_cifar(layout, Path(folder).expanduser())
