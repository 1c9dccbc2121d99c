"""The folder of a run: it is one run's, says what differs, and never gives up what was sent."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from delta.errors import CheckpointError, InputError
from delta.training.checkpoint import Checkpoint
from delta.training.folder import RunFolder
from delta.training.run_config import RunConfig

DATA = "0" * 64


def config(**changes: Any) -> RunConfig:
    return RunConfig.parse({"noise": {"epsilon": 8}, **changes}, what="test")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "one")


def _keep(folder: RunFolder, settings: RunConfig, *, data: str = DATA) -> None:
    """What a run leaves: a checkpoint, released bytes and a ledger."""
    store = folder.claim(settings, data=data).of("fit", {"lr": 1})
    store.save(Checkpoint(step=3, finished=False, tensors={"w": torch.ones(2)}, state={}))
    folder.releases.mkdir(exist_ok=True)
    (folder.releases / "releases").write_bytes(b"sent")
    folder.ledger.write_text("debited\n")


def _step(folder: RunFolder, settings: RunConfig, *, data: str = DATA, restart: bool = False) -> int | None:
    stored = folder.claim(settings, data=data, restart=restart).of("fit", {"lr": 1}).latest()
    return None if stored is None else stored.step


def _contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_the_same_run_finds_its_checkpoints_again(folder):
    _keep(folder, config())
    assert _step(folder, config()) == 3
    assert _step(RunFolder(folder.path), config()) == 3


def test_nothing_is_made_before_it_is_claimed(tmp_path):
    RunFolder(tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_the_note_says_what_runs_there_and_is_the_owners_alone(folder):
    folder.claim(config(rank=3), data=DATA)
    path = folder.path / "run.json"
    note = json.loads(path.read_text())
    assert note["config"]["rank"] == 3
    assert note["data"] == DATA
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("changes", "data", "named"),
    [
        ({"rank": 5}, DATA, "rank;"),
        ({"cloud_fit": {"epochs": 3}, "seed": 1}, DATA, "cloud_fit.epochs, seed;"),
        ({"noise": {"epsilon": 4}}, DATA, "noise.epsilon;"),
        ({"noise": "none"}, DATA, "noise;"),
        ({"model": {"split_at": "layer2"}}, DATA, "model.split_at;"),
        ({"model": {"arguments": {"width": 4}}}, DATA, "model.arguments.width;"),
        ({"whole": None}, DATA, "whole;"),
        ({"data": "generated:3x1x8x8"}, DATA, "data.source;"),
        ({}, "1" * 64, "in the data or the model's weights or code;"),
        ({"rank": 5}, "1" * 64, "rank, the data or the model's weights or code;"),
    ],
)
def test_another_run_is_refused_by_the_names_of_what_differs_and_nothing_changes(
    folder, changes, data, named
):
    _keep(folder, config())
    before = _contents(folder.path)
    with pytest.raises(CheckpointError) as caught:
        folder.claim(config(**changes), data=data)
    text = str(caught.value)
    assert named in text
    assert "another --out" in text
    assert "--restart" in text
    assert "\n" not in text
    assert _contents(folder.path) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"promote": "always"},
        {"promote": {"public_data": "embedded", "min_cloud_accuracy": 10}},
        {"budget": {"mu": 3}},
        {"budget": {"epsilon": 8}},
    ],
)
def test_budget_and_promotion_may_change_on_the_way(folder, changes):
    _keep(folder, config())
    assert _step(folder, config(**changes)) == 3
    assert _step(folder, config()) == 3


def test_a_restart_gives_up_checkpoints_and_keeps_what_was_sent(folder):
    _keep(folder, config())
    assert _step(folder, config(rank=5), data="1" * 64, restart=True) is None
    assert (folder.releases / "releases").read_bytes() == b"sent"
    assert folder.ledger.read_text() == "debited\n"
    assert _step(folder, config(rank=5), data="1" * 64) is None  # it is that run's now
    with pytest.raises(CheckpointError, match="rank, the data"):
        folder.claim(config(), data=DATA)


def test_a_restart_of_a_folder_that_holds_nothing_is_a_start(folder):
    assert _step(folder, config(), restart=True) is None
    assert _step(folder, config()) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"config": {}, "data": "x"}',
        '{"config": {}, "data": "x", "identity": "y"}',
    ],
)
def test_a_damaged_note_is_refused_and_can_be_given_up(folder, text):
    _keep(folder, config())
    note = folder.path / "run.json"
    note.write_text(text)
    with pytest.raises(CheckpointError, match=r"run\.json is damaged; choose another --out") as caught:
        folder.claim(config(), data=DATA)
    assert "\n" not in str(caught.value)
    assert note.read_text() == text
    assert _step(folder, config(), restart=True) is None
    assert _step(folder, config()) is None


def test_a_note_that_was_changed_by_hand_is_damaged(folder):
    _keep(folder, config())
    note = folder.path / "run.json"
    changed = json.loads(note.read_text())
    changed["config"]["rank"] = 5
    note.write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match="damaged"):
        folder.claim(config(rank=5), data=DATA)


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError) as caught:
        RunFolder(tmp_path / "file" / "run").claim(config(), data=DATA)
    assert "\n" not in str(caught.value)


def test_other_data_has_other_checkpoints_even_after_a_restart(folder):
    _keep(folder, config())
    store = folder.claim(config(), data="1" * 64, restart=True).of("fit", {"lr": 1})
    store.save(Checkpoint(step=7, finished=False, tensors={"w": torch.ones(2)}, state={}))
    assert _step(folder, config(), data="1" * 64) == 7


def test_checkpoints_may_lie_in_a_folder_that_runs_share_and_a_restart_leaves_that_alone(folder, tmp_path):
    """Their names tell fits apart, by settings, by data and by the version of the code."""

    def step(data: str, *, restart: bool = False) -> int | None:
        store = folder.claim(config(), data=data, restart=restart, checkpoints=tmp_path / "shared")
        stored = store.of("fit", {"lr": 1}).latest()
        return None if stored is None else stored.step

    store = folder.claim(config(), data=DATA, checkpoints=tmp_path / "shared").of("fit", {"lr": 1})
    store.save(Checkpoint(step=5, finished=False, tensors={"w": torch.ones(2)}, state={}))
    assert step(DATA, restart=True) == 5
    assert step("1" * 64, restart=True) is None
