"""Read files of figures: JSON objects, or a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delta.errors import InputError
from delta.report.figures import Figures
from delta.report.kinds import Kind, kind_of, refuse_if_empty

__all__ = ["Run", "read_runs"]

_MOST_BYTES = 256 * 2**20
"""Figures take kilobytes, and pictures of a gallery a few megabytes: a larger file is something else."""


@dataclass(frozen=True)
class Run:
    """The figures of one run.

    Attributes:
        kind: what kind of run.
        figures: what it measured.
        source: name of its file, with the line where there are several.
    """

    kind: Kind
    figures: Figures
    source: str


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Every run of some files.

    Raises:
        InputError: a file is absent, is neither JSON nor lines of JSON, is of an unknown kind, or holds nothing.
    """
    runs: list[Run] = []
    for path in paths:
        objects = _objects(path)
        for line, value in enumerate(objects, start=1):
            name = path.name if len(objects) == 1 else f"{path.name}, line {line}"
            where = str(path) if len(objects) == 1 else f"{path}, line {line},"
            kind = kind_of(value, where=where)
            refuse_if_empty(kind, value, where=where)
            runs.append(Run(kind, Figures(value), name))
    return runs


def _objects(path: Path) -> list[Mapping[str, Any]]:
    text = _text(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _lines(path, text)
    objects = found if isinstance(found, list) else [found]
    if not objects or not all(isinstance(one, dict) for one in objects):
        raise InputError(f"{path} holds no object of figures; give a file that a command wrote with --json")
    return objects


def _lines(path: Path, text: str) -> list[Any]:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    found = []
    for number, line in lines:
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            at = "it" if number == lines[0][0] else f"line {number}"
            raise InputError(
                f"{path} is no JSON: {at} cannot be read; give a file that a command wrote with --json"
            ) from None
    return found


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} is larger than {_MOST_BYTES // 2**20} MiB: no file of figures")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; give a file that a command wrote with --json"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text; give a file that a command wrote with --json") from None
