"""Single image files: decoded by Pillow, checked before they are decoded, one clear line for each fault.

Channels are taken by a simple rule. A model of three channels reads colour, palette and greyscale images
(the grey value three times) and an alpha channel that is opaque throughout. A model of one channel reads
greyscale alone: which grey a colour stands for is the owner's choice. Any other mode is refused: four
inks (CMYK), 16 or 32 bits a pixel, real transparency.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from delta.errors import InputError

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "find_images", "is_grey", "load_image", "load_pixels"]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Suffixes, in lower case, of the files that are taken for images in a folder."""

MAX_PIXELS = 64_000_000
"""Larger images are refused undecoded: a small file can unpack to gigabytes."""

# Only decoders that stay in this process: Pillow's EPS reader, say, starts Ghostscript.
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_GREY = frozenset({"1", "L", "LA", "La"})
_COLOUR = frozenset({"RGB", "RGBA", "RGBX", "P", "PA"})
_HEADER = threading.Lock()


def find_images(paths: Iterable[Path]) -> list[Path]:
    """The image files among paths: files as they are, folders searched through, in sorted order.

    Raises:
        InputError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and _is_plain(p, path)]
            if not inside:
                raise InputError(
                    f"{path}: no images in this folder; expected {', '.join(sorted(IMAGE_SUFFIXES))}"
                )
            found.extend(sorted(inside))
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
    if not found:
        raise InputError("no images given; name files, or folders of images")
    return found


def load_image(path: Path, *, channels: int, size: tuple[int, int] | None) -> Tensor:
    """Read one image.

    Args:
        path: of the file.
        channels: 3 (colour) or 1 (greyscale).
        size: `(height, width)` to resize to, by an antialiased bilinear filter and regardless of the aspect
            ratio; none keeps the image's own.

    Returns:
        `[channels, height, width]` float32 in [0, 1].

    Raises:
        InputError: the file is absent, damaged, too large, or has other channels.
    """
    return load_pixels(path, channels=channels, size=size).to(torch.float32).div_(255.0)


def load_pixels(path: Path, *, channels: int, size: tuple[int, int] | None) -> Tensor:
    """As `load_image`, but `[channels, height, width]` uint8."""
    if channels not in (1, 3):
        raise InputError(
            f"{path}: image files have 1 or 3 channels, the model takes {channels}; pass tensors instead"
        )
    with _opened(path) as image:
        _check_mode(path, image, channels)
        try:
            ImageOps.exif_transpose(image, in_place=True)
            decoded = _convert(path, image, channels)
            if size is not None and decoded.size != (size[1], size[0]):
                decoded = decoded.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            array = np.array(decoded, dtype=np.uint8)
        except InputError:
            raise
        except Exception as error:  # decoders meet hostile bytes, and raise whatever they like
            raise _damaged(path, error) from None
    return torch.from_numpy(array.reshape(*array.shape[:2], channels)).permute(2, 0, 1).contiguous()


def is_grey(path: Path) -> bool:
    """Whether the file's header declares a greyscale image.

    Raises:
        InputError: the file is absent, no image, or too large.
    """
    with _opened(path) as image:
        return image.mode in _GREY


def _opened(path: Path) -> Image.Image:
    """Open a file and read its header only."""
    try:
        # Warnings filters belong to the whole process, and the header takes microseconds.
        with _HEADER, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=_FORMATS)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder, expected an image file") from None
    except PermissionError:
        raise InputError(f"{path}: not readable; check its permissions") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: not an image, or damaged; expected {', '.join(_FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(path) from None
    except Exception as error:  # decoders meet hostile bytes, and raise whatever they like
        raise _damaged(path, error) from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise _too_large(path)
    return image


def _check_mode(path: Path, image: Image.Image, channels: int) -> None:
    if image.mode in _GREY or (channels == 3 and image.mode in _COLOUR):
        return
    count = len(image.getbands())
    if image.mode in _COLOUR:
        count = 3 if image.mode in ("P", "PA") else count
        raise InputError(
            f"{path}: {count} channels ({image.mode}), the model takes 1; convert it to greyscale first"
        )
    depth = f"{count} channels ({image.mode})" if count > 1 else f"more than 8 bits a pixel ({image.mode})"
    wanted = "3 (RGB)" if channels == 3 else "1 (greyscale)"
    raise InputError(f"{path}: {depth}, the model takes {wanted} of 8 bits; convert it first")


def _convert(path: Path, image: Image.Image, channels: int) -> Image.Image:
    """Decode, and drop an alpha channel that hides nothing."""
    target = "RGB" if channels == 3 else "L"
    if image.has_transparency_data:
        with_alpha = image.convert("LA" if image.mode in _GREY and image.mode != "1" else "RGBA")
        if with_alpha.getextrema()[-1] != (255, 255):
            raise InputError(
                f"{path}: {len(with_alpha.getbands())} channels with transparency ({image.mode}), "
                f"the model takes {channels}; flatten it onto a background first"
            )
        image = with_alpha
    return image.convert(target)


def _is_plain(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and path.is_file()


def _too_large(path: Path) -> InputError:
    return InputError(f"{path}: more than {MAX_PIXELS // 1_000_000} million pixels; scale it down first")


def _damaged(path: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return InputError(f"{path}: truncated or damaged image ({reason}); replace the file or leave it out")
