"""Checkpoints: whole or not there, and what is resumed from them is as if nothing had happened."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from delta.bundle.store import weights_hash
from delta.errors import CheckpointError
from delta.training.checkpoint import Checkpoint, CheckpointStore, FitStore
from delta.training.config import FitConfig
from delta.training.descent import Descent
from tests.small_fit import STEPS, small_fit

# The store


def _store(folder: Path, **options) -> tuple[CheckpointStore, list[str]]:
    warnings: list[str] = []
    return CheckpointStore(folder, identity="one", warn=warnings.append, **options), warnings


def _checkpoint(step: int, *, finished: bool = False) -> Checkpoint:
    return Checkpoint(step, finished, {"w": torch.full((3, 2), float(step))}, {"rate": 0.1 / 3, "n": [step]})


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _files(step: int) -> list[str]:
    return [f"step-{step:09d}.json", f"step-{step:09d}.safetensors"]


def _flip(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def test_what_was_saved_comes_back_exactly(tmp_path):
    _store(tmp_path / "deep" / "run")[0].save(_checkpoint(7))
    store, warnings = _store(tmp_path / "deep" / "run")
    for found in (store.latest(), store.at(7)):
        assert (found.step, found.finished, found.state) == (7, False, {"rate": 0.1 / 3, "n": [7]})
        assert torch.equal(found.tensors["w"], torch.full((3, 2), 7.0))
    assert store.at(6) is None
    assert warnings == []


def test_an_empty_folder_holds_none(tmp_path):
    store, warnings = _store(tmp_path / "none")
    assert store.latest() is None
    assert store.at(1) is None
    assert warnings == []
    assert not (tmp_path / "none").exists()


def test_the_newest_two_are_kept_and_what_killed_writers_left_is_swept(tmp_path):
    store, _ = _store(tmp_path)
    (tmp_path / ".step-000000002.json-abc").write_text("half")
    (tmp_path / "step-000000009.safetensors").write_bytes(b"no manifest")
    (tmp_path / "notes.txt").write_text("mine")
    for step in (1, 2, 3):
        store.save(_checkpoint(step))
    assert _names(tmp_path) == sorted([*_files(2), *_files(3), "notes.txt"])
    store.save(_checkpoint(4, finished=True))
    assert _names(tmp_path) == sorted([*_files(3), *_files(4), "notes.txt"])
    assert store.latest().finished


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_damaged_finished_one_gives_way_to_the_intact_one_before_it(tmp_path, suffix):
    first, _ = _store(tmp_path)
    for step in (1, 2):
        first.save(_checkpoint(step))
    second = tmp_path / _files(2)[1]
    second.write_bytes(_flip(second.read_bytes()))
    again, _ = _store(tmp_path)
    assert again.latest().step == 1
    again.save(_checkpoint(3, finished=True))
    assert _names(tmp_path) == [*_files(1), *_files(3)]  # not the newer one that is damaged
    path = tmp_path / f"step-000000003.{suffix}"
    path.write_bytes(_flip(path.read_bytes()))
    store, warnings = _store(tmp_path)
    assert (store.latest().step, store.latest().finished) == (1, False)
    assert warnings[0].startswith(f"checkpoint {path}: ")
    assert warnings[0].endswith("; going on from step 1 before it")


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("damage", [lambda d: d[:-5], lambda d: b"", lambda d: d + b"x", _flip, None])
def test_a_damaged_newest_one_gives_way_to_the_one_before_it(tmp_path, suffix, damage):
    first, _ = _store(tmp_path)
    first.save(_checkpoint(1))
    first.save(_checkpoint(2))
    path = tmp_path / f"step-000000002.{suffix}"
    path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
    store, warnings = _store(tmp_path)
    assert store.latest().step == 1
    if damage is None and suffix == "json":  # it was never completed
        assert warnings == []
    else:
        (warning,) = warnings
        assert warning.startswith(f"checkpoint {path}: ")
        assert warning.endswith("; going on from step 1 before it")
    assert store.at(2) is None
    # The good one outlives the damaged one, whichever is newer.
    store.save(_checkpoint(5))
    assert _names(tmp_path) == [*_files(1), *_files(5)]


def test_where_all_are_damaged_there_is_none(tmp_path):
    first, _ = _store(tmp_path)
    first.save(_checkpoint(1))
    first.save(_checkpoint(2))
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(_flip(path.read_bytes()))
    store, warnings = _store(tmp_path)
    assert store.latest() is None
    assert [w.split(": ", 1)[1] for w in warnings] == [
        "SHA-256 differs; no intact one is before it: starting anew"
    ] * 2


def test_a_renamed_or_an_exchanged_one_is_damaged(tmp_path):
    first, _ = _store(tmp_path)
    first.save(_checkpoint(1))
    first.save(_checkpoint(2))
    for old, new in zip(_files(2), _files(8), strict=True):
        (tmp_path / old).rename(tmp_path / new)
    store, warnings = _store(tmp_path)
    assert store.latest().step == 1
    assert len(warnings) == 1
    (tmp_path / _files(1)[1]).write_bytes((tmp_path / _files(8)[1]).read_bytes())
    assert store.latest() is None


def test_the_log_says_what_was_passed_over(tmp_path, caplog):
    CheckpointStore(tmp_path, identity="one").save(_checkpoint(1))
    path = tmp_path / _files(1)[1]
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, logger="delta"):
        assert CheckpointStore(tmp_path, identity="one").latest() is None
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("delta", "WARNING")
    assert str(path) in record.message


def test_another_configurations_checkpoint_is_refused(tmp_path):
    _store(tmp_path)[0].save(_checkpoint(1))
    other = CheckpointStore(tmp_path, identity="two")
    for read in (other.latest, lambda: other.at(1)):
        with pytest.raises(
            CheckpointError, match=r"another configuration .* choose another folder, or delete"
        ):
            read()


def test_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("delta.training.checkpoint.FORMAT", 99)
    _store(tmp_path)[0].save(_checkpoint(1))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 99, expected 1"):
        _store(tmp_path)[0].latest()


def test_a_manifest_is_plain_json_without_tensors(tmp_path):
    _store(tmp_path)[0].save(_checkpoint(1))
    manifest = json.loads((tmp_path / _files(1)[0]).read_text())
    assert set(manifest) == {"format", "identity", "step", "finished", "tensors", "state", "sha256"}


def test_due_goes_by_steps_and_by_time(tmp_path):
    store, _ = _store(tmp_path, every_steps=3, every_s=1e9)
    assert [store.due(step) for step in (1, 2, 3)] == [False, False, True]
    store.save(_checkpoint(3))
    assert [store.due(step) for step in (4, 5, 6)] == [False, False, True]
    assert _store(tmp_path, every_s=0.0)[0].due(1)
    assert not _store(tmp_path)[0].due(10**6)  # 30 seconds have not passed


@pytest.mark.parametrize("failing", range(1, 5))
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch, failing):
    store, _ = _store(tmp_path)
    store.save(_checkpoint(1))
    sync, calls = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left .* the one of step 1 is kept: make room in"):
        store.save(_checkpoint(2))
    monkeypatch.undo()
    again, warnings = _store(tmp_path)
    assert again.latest().step == (
        2 if failing == 4 else 1
    )  # the fourth only makes the manifest's name durable
    assert warnings == []
    assert not [name for name in _names(tmp_path) if name.startswith(".")]


def test_a_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    store, _ = _store(tmp_path / "file" / "run")
    with pytest.raises(CheckpointError, match="none is before it: make room in"):
        store.save(_checkpoint(1))
    with pytest.raises(CheckpointError, match="cannot be read"):
        store.latest()


def test_each_fit_has_a_folder_of_its_own(tmp_path):
    fits = FitStore(tmp_path, {"data": "x"})
    fits.of("main", {"epochs": 1}).save(_checkpoint(1))
    assert FitStore(tmp_path, {"data": "x"}).of("main", {"epochs": 1}).latest().step == 1
    for context, name, settings in (
        ({"data": "y"}, "main", {"epochs": 1}),
        ({"data": "x"}, "whole", {"epochs": 1}),
        ({"data": "x"}, "main", {}),
    ):
        assert FitStore(tmp_path, context).of(name, settings).latest() is None


# Going on


class _CutError(Exception):
    pass


def _cut_at(step: int):
    def progress(stage: str, done: int, total: int) -> None:
        if done == step:
            raise _CutError

    return progress


@pytest.fixture(scope="module")
def uninterrupted() -> str:
    return small_fit(None, epochs=3)


@pytest.mark.parametrize("step", range(1, 3 * STEPS + 1))  # epoch boundaries and the last step among them
def test_a_fit_goes_on_at_any_step_to_bit_identical_weights(tmp_path, uninterrupted, step):
    with pytest.raises(_CutError):
        small_fit(_store(tmp_path, every_steps=1)[0], epochs=3, progress=_cut_at(step))
    told: list[int] = []
    store, warnings = _store(tmp_path, every_steps=1)
    assert small_fit(store, epochs=3, progress=lambda _, done, total: told.append(done)) == uninterrupted
    first = step + 1 if step < 3 * STEPS else step  # the end is stored after it is told
    assert told == list(range(first, 3 * STEPS + 1))
    assert warnings == []


def test_a_finished_fit_loads_its_weights_and_tells_nobody(tmp_path, uninterrupted):
    assert small_fit(_store(tmp_path)[0], epochs=3) == uninterrupted
    assert _names(tmp_path) == ["lock", *_files(3 * STEPS)]
    assert small_fit(_store(tmp_path)[0], epochs=3, progress=_cut_at(1)) == uninterrupted


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], _flip, None])
def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(tmp_path, uninterrupted, damage):
    with pytest.raises(_CutError):
        small_fit(_store(tmp_path, every_steps=3)[0], epochs=3, progress=_cut_at(8))
    path = tmp_path / _files(6)[1]
    path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
    told: list[int] = []
    store, warnings = _store(tmp_path, every_steps=3)
    assert small_fit(store, epochs=3, progress=lambda _, done, total: told.append(done)) == uninterrupted
    assert told[0] == 4
    (warning,) = warnings
    assert "going on from step 3 before it" in warning


def test_a_fit_survives_a_full_disk(tmp_path, uninterrupted, monkeypatch):
    sync, calls = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 10:  # four a checkpoint: in the middle of the third
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"checkpoint of step 3: .* the one of step 2 is kept"):
        small_fit(_store(tmp_path, every_steps=1)[0], epochs=3)
    monkeypatch.undo()
    assert small_fit(_store(tmp_path, every_steps=1)[0], epochs=3) == uninterrupted


def test_another_number_of_steps_is_another_fit(tmp_path):
    with pytest.raises(_CutError):
        small_fit(_store(tmp_path, every_steps=1)[0], epochs=3, progress=_cut_at(2))
    with pytest.raises(CheckpointError, match="28 records, 12 steps, expected 28 records, 16 steps"):
        small_fit(_store(tmp_path)[0], epochs=4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_and_regularisation_are_resumed_too(tmp_path, uninterrupted, precision):
    options = {"precision": precision, "orthogonality": 0.01}
    reference = small_fit(None, epochs=3, **options)
    assert reference != uninterrupted
    with pytest.raises(_CutError):
        small_fit(_store(tmp_path, every_steps=1)[0], epochs=3, progress=_cut_at(5), **options)
    assert small_fit(_store(tmp_path)[0], epochs=3, **options) == reference


# The descent


def _linear(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 2))


def _descend(model: nn.Module, descent: Descent, steps: int) -> None:
    for i in range(steps):
        descent.step(model(torch.full((4, 2), float(i + 1))).square().mean())


def test_a_descent_goes_on_where_it_was():
    config = FitConfig(epochs=1)
    model = _linear(3)
    descent = Descent(model, config, steps=10)
    _descend(model, descent, 4)
    other = _linear(3)
    other.load_state_dict(model.state_dict())
    again = Descent(other, config, steps=10)
    again.load(
        {name: tensor.clone() for name, tensor in descent.tensors().items()},
        json.loads(json.dumps(descent.state())),
    )
    _descend(model, descent, 6)
    _descend(other, again, 6)
    assert weights_hash(model.state_dict()) == weights_hash(other.state_dict())


def test_another_models_descent_is_refused_and_changes_nothing():
    config = FitConfig(epochs=1)
    narrow, wide = _linear(3), _linear(4)
    descent, other = (Descent(m, config, steps=10) for m in (narrow, wide))
    _descend(narrow, descent, 1)
    _descend(wide, other, 1)
    before = {name: tensor.clone() for name, tensor in other.tensors().items()}
    without = {name: t for name, t in other.tensors().items() if name != "0.exp_avg"}
    for tensors, state in (
        (descent.tensors(), descent.state()),
        (other.tensors(), {}),
        (without, other.state()),
        ({**other.tensors(), "9.step": torch.zeros(())}, other.state()),
    ):
        with pytest.raises(CheckpointError, match="not this model's"):
            other.load(tensors, state)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.tensors().items())
