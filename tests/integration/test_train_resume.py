"""`delta train` and its cloud, killed by SIGKILL at any moment and started again: as if nothing had happened.

Every kill is of a real process, by its own id. What a killed run ends in is compared with an undisturbed run of
the same released bytes: their order and noise come from a key that no other run has.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from delta_client import TenantToken
from delta_server.launch import ServerProcess

from tests.command_target import POINTS, Commands, commands, killing
from tests.commands import Outcome
from tests.tiny_runs import RECORDS, entered, figures_of, outcome_of, stored_releases, write_config

EACH_STEP = {"DELTA_CHECKPOINT_STEPS": "1"}


@pytest.fixture(scope="module")
def target() -> Iterator[Commands]:
    with commands() as running:
        yield running


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A cloud that trains and stays; it stores its state after each step."""
    with _serve(tmp_path_factory.mktemp("cloud")) as process:
        yield process


def _serve(folder: Path, *, port: str = "0") -> ServerProcess:
    folder.mkdir(exist_ok=True)
    return ServerProcess.start(
        training=folder / "store",
        threads=1,
        env={**EACH_STEP, "OMP_NUM_THREADS": "1"},
        log_path=folder / "server.log",
        options=("--listen", f"127.0.0.1:{port}"),
    )


class _Run:
    """One run of `delta train` in a folder, started as often as it takes."""

    def __init__(self, target: Commands, folder: Path, *, address: str | None = None, **changes: Any) -> None:
        self.out = folder / "out"
        self._target = target
        self._call = ["train", "--config", write_config(folder / "run.yaml", **changes), "--out", self.out]
        self._call += ["--cloud", address] if address is not None else []

    def start(self, **how: Any) -> Outcome:
        return self._target.run(*self._call, env=EACH_STEP, **how)

    def done(self) -> dict[str, Any]:
        """Run it to its end; returns what it comes to."""
        ended = self.start()
        assert ended.code == 0, ended.err
        assert "warning" not in ended.err  # a kill damages nothing
        return outcome_of(self.out)

    def killed(self, **how: Any) -> None:
        ended = self.start(**how)
        assert ended.code == -signal.SIGKILL, ended.err

    def undisturbed(self, folder: Path, *, address: str | None, **changes: Any) -> dict[str, Any]:
        """What another run with the same released bytes comes to, which nobody kills."""
        other = _Run(self._target, folder, address=address, **changes)
        shutil.copytree(self.out / "releases", other.out / "releases")
        return other.done()


def _kill_at_random(run: _Run, *, kills: int, seed: int, most: int) -> None:
    """Kill a run so many times, inside a write or right after one; it is not over before that."""
    choose = random.Random(seed)
    released: dict[str, bytes] = {}
    sent: list[tuple[str, str]] = []
    for _ in range(kills):
        run.killed(die=(choose.choice(POINTS), choose.randint(1, most)))
        if released:
            assert stored_releases(run.out) == released
        released = stored_releases(run.out)
        if sent:
            assert entered(run.out) == sent
        sent = entered(run.out)
        assert len(sent) in (0, RECORDS)


# One-shot


def test_a_run_and_its_cloud_killed_a_few_times_end_as_undisturbed_ones(target, cloud, tmp_path):
    """In the end the cloud is killed while it trains: the run's watch finds the one that is started in its place."""
    changes = {"cloud_fit": {"epochs": 12}}
    servers = [_serve(tmp_path / "cloud")]
    address = servers[0].address

    def told(pid: int, line: str) -> None:
        if line.startswith("cloud model:") and len(servers) == 1:
            os.kill(servers[0].pid, signal.SIGKILL)
            servers.append(_serve(tmp_path / "cloud", port=address.rpartition(":")[2]))

    try:
        run = _Run(target, tmp_path, address=address, **changes)
        _kill_at_random(run, kills=5, seed=1, most=8)
        ended = run.start(told=told)
        assert (ended.code, len(servers)) == (0, 2), ended.err
        assert '"training"' in servers[1].log_text()  # it was not done before the kill
    finally:
        for server in servers:
            server.stop()
    assert outcome_of(run.out) == run.undisturbed(tmp_path / "other", address=cloud.address, **changes)
    assert len(entered(run.out)) == RECORDS


def test_what_was_released_stays_and_the_ledger_knows_of_it(target, cloud, tmp_path):
    """Killed before the noisy bits are stored, their key stays; after that, the bits; the ledger is before both."""
    changes = {"noise": {"epsilon": 8}, "labels": {"kind": "randomized-response", "epsilon": 2}}
    run = _Run(target, tmp_path, address=cloud.address, **changes)
    run.killed(die_before="/releases-")
    assert (stored_releases(run.out), entered(run.out)) == ({}, [])
    assert len(list((run.out / "releases").glob("*.key"))) == 1
    twin = _Run(target, tmp_path / "twin", address=cloud.address, **changes)
    shutil.copytree(run.out, twin.out)
    for one in (run, twin):
        one.killed(told=killing("upload, cloud model"))
        assert len(entered(one.out)) == RECORDS + (RECORDS - RECORDS // 10)  # releases, and labels told
    released, sent = stored_releases(run.out), entered(run.out)
    assert len(released) == 1
    assert released == stored_releases(twin.out)
    assert sent == entered(twin.out)
    assert not list((run.out / "releases").glob("*.key"))  # erased once they are stored
    run.killed(told=killing("upload, cloud model"))
    assert (stored_releases(run.out), entered(run.out)) == (released, sent)


@pytest.mark.slow
def test_a_run_with_its_own_cloud_goes_on_at_once_after_a_kill(target, tmp_path):
    """The cloud of the killed run may still hold the store; the next one waits until it has ended."""
    run = _Run(target, tmp_path, cloud_fit={"epochs": 10})
    run.killed(told=killing("cloud model:"))  # it trains
    run.killed(told=killing("upload, cloud model"))
    run.killed(told=killing("upload, cloud model"))
    assert len(entered(run.out)) == RECORDS
    (tenant,) = (run.out / "cloud" / "tenants").iterdir()  # the same one at every port
    token = TenantToken.load(run.out / "tenant.token").for_cloud("local")
    assert tenant.name == hashlib.sha256(token).hexdigest()


# What the disk does


def _fits(out: Path) -> dict[str, bytes]:
    """The weights of finished fits."""
    folders = (out / "checkpoints").iterdir()
    return {f.name: max(f.glob("*.safetensors")).read_bytes() for f in folders}


def _until_upload(run: _Run) -> str:
    ended = run.start(told=killing("upload, cloud model"))
    assert ended.code == -signal.SIGKILL, ended.err
    return ended.err


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(target, cloud, tmp_path):
    run = _Run(target, tmp_path / "a", address=cloud.address, main_fit={"epochs": 2})
    run.killed(die_before=r"/main-\w+/step-000000005.json")
    (newest,) = (run.out / "checkpoints").glob("main-*/step-000000004.safetensors")
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1
    newest.write_bytes(data)
    said = [line for line in _until_upload(run).splitlines() if line.startswith("warning: ")]
    assert len(said) == 1
    assert "step-000000004" in said[0]
    assert "going on from step 3" in said[0]
    other = _Run(target, tmp_path / "b", address=cloud.address, main_fit={"epochs": 2})
    assert "warning" not in _until_upload(other)
    assert _fits(run.out) == _fits(other.out)


def test_a_full_disk_costs_nothing_but_another_start(target, cloud, tmp_path):
    """At a checkpoint, at the releases and at the ledger: one clear line, and nothing is sent or entered."""
    changes = {"labels": {"kind": "randomized-response", "epsilon": 2}}
    run = _Run(target, tmp_path / "a", address=cloud.address, **changes)
    other = _Run(target, tmp_path / "b", address=cloud.address, **changes)
    _until_upload(other)
    (released,) = (len(data) for data in stored_releases(other.out).values())
    assert released < (other.out / "ledger.jsonl").stat().st_size

    def refused(room: int, code: int, what: str) -> None:
        ended = run.start(file_bytes=room)
        last = ended.err.strip().splitlines()[-1]
        assert (ended.code, last.startswith(f"error: {what}")) == (code, True), ended.err
        assert "File too large" in last or "No space left" in last
        assert "upload" not in ended.err
        assert entered(run.out) == []

    refused(4096, 5, "checkpoint of step 1: ")
    run.killed(die_before="/releases-")  # with room for the fits
    refused(released - 1, 3, f"{run.out}/releases/releases-")
    refused(released, 6, "ledger ")
    _until_upload(run)
    assert _fits(run.out) == _fits(other.out)
    assert len(entered(run.out)) == len(entered(other.out))


# Interactive


@pytest.mark.parametrize("kills", [(5,), pytest.param((1, 2, 7, 8, 9), marks=pytest.mark.slow)])
def test_an_interactive_run_that_is_killed_ends_as_an_undisturbed_one(target, cloud, tmp_path, kills):
    """At a step that the cloud has stored and the private side has not, both go on from the one before it."""
    changes = {"mode": "interactive", "cloud_fit": {"epochs": 3}}
    run = _Run(target, tmp_path, address=cloud.address, **changes)
    for step in kills:
        run.killed(die_before=rf"/merged-\w+/step-00000000{step}.json")
        assert len(entered(run.out)) == RECORDS
    assert run.done() == run.undisturbed(tmp_path / "other", address=cloud.address, **changes)
    assert figures_of(run.out / "summary.json")["bad_answers"] == 0


@pytest.mark.slow
def test_an_interactive_run_survives_the_kill_of_its_cloud(target, tmp_path):
    changes = {"mode": "interactive", "cloud_fit": {"epochs": 20}}
    with _serve(tmp_path / "cloud") as first:
        address = first.address
        run = _Run(target, tmp_path, address=address, **changes)
        ended = run.start(
            told=lambda _, line: line.startswith("cloud model:") and os.kill(first.pid, signal.SIGKILL)
        )
        assert ended.code == 7, ended.err
        assert ended.err.strip().splitlines()[-1].startswith("error: ")
        assert "Traceback" not in ended.err
    with _serve(tmp_path / "cloud", port=address.rpartition(":")[2]):
        assert run.done() == run.undisturbed(tmp_path / "other", address=address, **changes)


# Many


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "reached"),
    [
        # Through both stages into the fits of the best main-only model, and through the exchange alone.
        ({"whole": {"epochs": 4}, "main_fit": {"epochs": 5}, "cloud_fit": {"epochs": 2}}, "main-only-*"),
        ({"mode": "interactive", "cloud_fit": {"epochs": 20}}, "merged-*"),
    ],
)
def test_a_run_killed_many_times_ends_as_an_undisturbed_one(target, cloud, tmp_path, changes, reached):
    run = _Run(target, tmp_path, address=cloud.address, **changes)
    _kill_at_random(run, kills=30, seed=3, most=8)
    assert list((run.out / "checkpoints").glob(reached))
    assert run.done() == run.undisturbed(tmp_path / "other", address=cloud.address, **changes)
    assert len(entered(run.out)) == RECORDS
