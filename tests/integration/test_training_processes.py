"""Several processes that train one job of a real server: who can reach them, and how they end."""

from __future__ import annotations

import os
import secrets
import select
import signal
from pathlib import Path

import pytest

from delta.training.config import FitConfig
from tests.training_jobs import HELD_OUT, job_spec
from tests.training_servers import LONG, connect, events, kill, name, start, until, uploaded

pytestmark = pytest.mark.slow

A_WHILE = job_spec(fit=FitConfig(epochs=60, batch=16))
LISTEN = "0A"
LOOPBACK = {"tcp": "0100007F", "tcp6": "00000000000000000000000001000000"}


def children(pid):
    """Processes that a process has started, and those that these have, by pid."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= new
    return found


def listening(pids):
    """Addresses, as the kernel writes them, at which one of the processes takes connections."""
    sockets = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            try:
                sockets.add(os.readlink(handle))
            except OSError:  # it was closed meanwhile
                continue
    rows = [
        (family, line.split())
        for family in LOOPBACK
        for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]
    ]
    return [
        (family, row[1].partition(":")[0])
        for family, row in rows
        if row[3] == LISTEN and f"socket:[{row[9]}]" in sockets
    ]


def assert_ended(pids):
    """Their server is gone, so they end by themselves; each is waited for."""
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended, _, _ = select.select([handle], [], [], 20.0)
        os.close(handle)
        assert ended, f"process {pid} lives on"


def test_they_train_one_job_and_nobody_else_can_reach_them(tmp_path):
    with start(tmp_path, "--train-workers", "2") as server, connect(server, bytes(32)) as cloud:
        dataset, job, endless = uploaded(cloud), name(), name()
        cloud.start(dataset, job, job_spec())
        assert list(cloud.watch(dataset, job))[-1].state == "done"
        assert cloud.held_out_logits(dataset, job, records=HELD_OUT).isfinite().all()
        assert not list(tmp_path.rglob("rendezvous*"))
        cloud.start(dataset, endless, LONG)
        states = cloud.watch(dataset, endless)
        until(states, lambda state: state.step > 0)
        pids = children(server.pid)
        assert len(pids) == 2
        assert listening({server.pid}), "the server's own port is found"
        for family, address in listening(pids):
            assert address == LOOPBACK[family]
        (meeting,) = tmp_path.rglob("rendezvous-*")
        assert meeting.stat().st_mode & 0o777 == 0o700
        cloud.cancel(dataset, endless)
        assert list(states)[-1].state == "cancelled"
        assert not children(server.pid)
        assert not list(tmp_path.rglob("rendezvous*"))


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_is_killed_all_start_again_from_a_checkpoint(tmp_path, rank):
    env = {"DELTA_CHECKPOINT_STEPS": "5"}
    with (
        start(tmp_path, "--train-workers", "2", env=env) as server,
        connect(server, secrets.token_bytes(32)) as cloud,
    ):
        dataset, job = uploaded(cloud), name()
        cloud.start(dataset, job, A_WHILE)
        states = cloud.watch(dataset, job)
        until(states, lambda _: list(tmp_path.rglob("step-*.json")))
        leader = events(server, "training")[-1]["pid"]
        (other,) = children(server.pid) - {leader}
        os.kill((leader, other)[rank], signal.SIGKILL)
        assert list(states)[-1].state == "done"
        assert [line["status"] for line in events(server, "training process ended")] == [-signal.SIGKILL]
        assert not children(server.pid)


def test_none_outlives_its_server(tmp_path):
    server = start(tmp_path, "--train-workers", "2")
    with connect(server, secrets.token_bytes(32)) as cloud:
        dataset, job = uploaded(cloud), name()
        cloud.start(dataset, job, LONG)
        until(cloud.watch(dataset, job), lambda state: state.step > 0)
        pids = children(server.pid)
        assert len(pids) == 2
        kill(server)
        assert_ended(pids)
