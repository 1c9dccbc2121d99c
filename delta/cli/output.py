"""What commands print: tables, one-line complaints, JSON files, and progress for a terminal or a log."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from delta.errors import InputError
from delta.files import write_whole

__all__ = [
    "check_writable",
    "complain",
    "console",
    "progress",
    "say",
    "table",
    "warn",
    "write_json",
    "write_text",
]

console = Console(highlight=False, soft_wrap=True)
_wide = Console(highlight=False, soft_wrap=True, width=1000)
_errors = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str = "") -> None:
    """A line of output."""
    console.print(text, markup=False)


def complain(text: str) -> None:
    """One line on standard error."""
    _errors.print(f"error: {' '.join(text.split())}", markup=False)


def warn(text: str) -> None:
    """One line on standard error that is no failure."""
    _errors.print(f"warning: {' '.join(text.split())}", markup=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; first column to the left, the others to the right."""
    grid = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    # A file or a pipe has no width of its own: a path is not folded there.
    (console if console.is_terminal else _wide).print(grid, markup=False)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    write_whole(path, text.encode(), mode=0o644)


def check_writable(*paths: Path | None) -> None:
    """Refuse a file that could not be written, before any work is done or anything leaves.

    Raises:
        InputError: its folder is closed to us or no folder, or the path is one.
    """
    for path in paths:
        if path is None or str(path) == "-":
            continue
        # Absent folders are made when the file is written: the nearest that is there decides.
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise InputError(f"{path} cannot be written; name a file in a folder of yours")


def write_json(path: Path | None, value: Any) -> None:  # noqa: ANN401
    """Write figures where `--json` says; `-` is standard output, none writes nothing."""
    if path is None:
        return
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        write_text(path, text)


class _Lines:
    """Progress as plain lines: when a stage begins, and when it ends."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._started:
            self._started[stage] = time.perf_counter()
            _errors.print(f"{stage}: {total} steps", markup=False)
        if done == total:
            seconds = time.perf_counter() - self._started.pop(stage)
            _errors.print(f"{stage}: done in {seconds:.1f} s", markup=False)


class _Bars:
    """Progress as bars on a terminal."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)


@contextmanager
def progress() -> Iterator[_Lines | _Bars]:
    """A progress callback `(stage, steps done, steps in all)`, on standard error."""
    if not _errors.is_terminal:
        yield _Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_errors) as bars:
        yield _Bars(bars)
