"""Runs that share a folder of checkpoints: one trains at a time, and what is finished is for all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from delta.errors import CheckpointError
from delta.training.checkpoint import CheckpointStore, FitStore
from tests.small_fit import STEPS, small_fit


def _store(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder, identity="one", every_steps=1)


class _CutError(Exception):
    pass


def _cut_at(step: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if done == step:
            raise _CutError

    return progress


def test_a_fit_store_tells_what_was_taken_from_it_and_how_long_that_had_taken(tmp_path):
    first = FitStore(tmp_path, "one", every_steps=1)
    with pytest.raises(_CutError):
        small_fit(first.of("b", 0), epochs=3, progress=_cut_at(5))
    small_fit(first.of("a", 0), epochs=1)
    assert first.taken == {}
    resumed = FitStore(tmp_path, "one", every_steps=1)
    (before,) = (found for found in [resumed.of("b", 0).latest()] if found is not None)
    small_fit(resumed.of("b", 0), epochs=3)
    assert resumed.taken == {}  # it was not finished
    again = FitStore(tmp_path, "one")
    for name, epochs in (("b", 3), ("a", 1)):
        small_fit(again.of(name, 0), epochs=epochs, progress=_cut_at(1))
    assert list(again.taken) == ["b", "a"]
    assert again.taken["b"] > before.state["seconds"] > 0.0
    assert again.taken["b"] == again.of("b", 0).latest().state["seconds"]


def test_a_folder_is_one_runs_at_a_time(tmp_path):
    one, other = _store(tmp_path), _store(tmp_path)
    held = rf"{tmp_path} is in use by another run; wait for it, or choose another folder"
    refused: list[int] = []

    def meanwhile(stage: str, done: int, total: int) -> None:
        with pytest.raises(CheckpointError, match=held):
            small_fit(other, epochs=3)
        refused.append(done)

    small_fit(one, epochs=3, progress=meanwhile)
    assert refused == list(range(1, 3 * STEPS + 1))
    with one.held():  # what is finished is for all
        assert small_fit(other, epochs=3, progress=_cut_at(1)) == small_fit(None, epochs=3)
    with other.held(), pytest.raises(CheckpointError, match=held), one.held():
        pass


def test_a_fit_that_failed_lets_the_next_one_in(tmp_path):
    store = _store(tmp_path)
    with pytest.raises(_CutError):
        small_fit(store, epochs=1, progress=_cut_at(2))
    with store.held():
        pass


def test_another_process_is_kept_out_and_a_forked_child_does_not_take_the_lock_away(tmp_path):
    store = _store(tmp_path)
    script = (
        "import sys, pathlib; from delta.training.folder_lock import InUseError, folder_lock\n"
        "try:\n"
        "    with folder_lock(pathlib.Path(sys.argv[1])): print('in')\n"
        "except InUseError: print('out')\n"
    )

    def tried() -> str:
        command = [sys.executable, "-c", script, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    lock = store.held()
    lock.__enter__()
    child = os.fork()
    if child == 0:
        lock.__exit__(None, None, None)
        os._exit(0)
    os.waitpid(child, 0)
    assert tried() == "out"
    lock.__exit__(None, None, None)
    assert tried() == "in"


def test_a_folder_that_cannot_be_locked_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be used: .* choose another folder"):
        small_fit(_store(tmp_path / "file" / "run"), epochs=1)
