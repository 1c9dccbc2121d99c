"""What commands are told of a model: the shape of its records, and the arguments of its builder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from delta.errors import ConfigError

__all__ = ["MODEL", "arguments_of", "nested", "shape_of"]

MODEL = "resnet18, resnet34, resnet_small, he_cnn, or your own as package.module:callable."
"""Help of `--model`."""


def shape_of(text: str) -> tuple[int, int, int]:
    """`CHANNELSxHEIGHTxWIDTH` as numbers.

    Raises:
        ConfigError: it is no such text.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(
        part.isascii() and part.isdigit() and 0 < int(part) <= 65536 for part in parts
    ):
        raise ConfigError(f"--input {text!r} is no shape; write CHANNELSxHEIGHTxWIDTH, such as 3x32x32")
    channels, height, width = (int(part) for part in parts)
    return channels, height, width


def arguments_of(target: str, *, classes: int | None, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What the builder of a model gets.

    Args:
        target: `package.module:callable`.
        classes: as `--classes` says.
        shape: of a record.

    Raises:
        ConfigError: one of ours without the number of classes, or a user's own with it.
    """
    from delta.models.targets import OURS, default_arguments

    if target not in OURS:
        if classes is not None:
            raise ConfigError("--classes is for our models; your own builder knows its classes")
        return {}
    if classes is None:
        name = target.partition(":")[2]
        raise ConfigError(f"model {name!r} needs the number of classes; give --classes 100")
    return default_arguments(target, classes=classes, shape=shape)


def nested(changes: Sequence[str], *, option: str = "--set") -> dict[str, Any]:
    """`key=value` and `outer.inner=value` as settings."""
    from delta.config import read_change

    value: dict[str, Any] = {}
    for change in changes:
        (*outer, last), new = read_change(change, option=option)
        place = value
        for key in outer:
            inner = place.get(key)
            place[key] = place = dict(inner) if isinstance(inner, dict) else {}
        place[last] = new
    return value
