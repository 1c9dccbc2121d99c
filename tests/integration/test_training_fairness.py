"""One tenant of a real server takes all that it can get: what is left to the others."""

from __future__ import annotations

import resource
import secrets
from contextlib import ExitStack
from pathlib import Path

import pytest
from delta_client import GrpcTrainingCloud
from delta_server.app import ServerThread
from delta_server.config import ServerConfig

from delta.bundle.manifest import Architecture
from delta.errors import CloudOverloadedError
from delta.training.config import FitConfig
from tests.training_jobs import CLASSES, chunks_of, dataset_spec, job_spec, release_config
from tests.training_servers import LONG, RELEASES, connect, events, name, start, until, uploaded

STEPS = job_spec(steps=5)


def impatient(server, token):
    """A client that does not try again."""
    return GrpcTrainingCloud(server.address, token, pauses_s=())


def test_a_tenants_streams_are_limited_and_so_are_those_of_all_strangers_together(tmp_path):
    with ExitStack() as stack:
        server = stack.enter_context(ServerThread(ServerConfig(training=tmp_path, max_streams=8, threads=1)))
        greedy, token = secrets.token_bytes(32), secrets.token_bytes(32)
        cloud = stack.enter_context(impatient(server, greedy))
        dataset, job = uploaded(cloud), name()
        cloud.start(dataset, job, LONG)
        watches = [cloud.watch(dataset, job) for _ in range(3)]
        for watch in watches[:2]:
            next(watch)
        with pytest.raises(CloudOverloadedError, match="this tenant has 2 training streams open already"):
            next(watches[2])
        other = stack.enter_context(connect(server, token))
        theirs, waiting = uploaded(other), name()
        other.start(theirs, waiting, LONG)
        assert next(other.watch(theirs, waiting)).state == "waiting"
        cloud.cancel(dataset, job)
        for watch in watches[:2]:
            assert list(watch)[-1].state == "cancelled"
        until(other.watch(theirs, waiting), lambda state: state.state == "running")
        other.cancel(theirs, waiting)


def test_tenants_jobs_take_turns(tmp_path):
    config = ServerConfig(training=tmp_path, threads=1)
    with ServerThread(config) as server, connect(server, bytes(32)) as greedy:
        dataset, jobs = uploaded(greedy), [name(), name()]
        for job in jobs:
            greedy.start(dataset, job, LONG)
        with connect(server, secrets.token_bytes(32)) as cloud:
            theirs, job = uploaded(cloud), name()
            cloud.start(theirs, job, job_spec())
            greedy.cancel(dataset, jobs[0])
            assert list(cloud.watch(theirs, job))[-1].state == "done"
            assert list(greedy.watch(dataset, jobs[0]))[-1].state == "cancelled"
            greedy.cancel(dataset, jobs[1])


@pytest.mark.slow
def test_one_tenant_opens_half_of_the_interactive_trainings(tmp_path):
    config = ServerConfig(training=tmp_path, train_sessions=2, threads=1)
    with ServerThread(config) as server, impatient(server, bytes(32)) as greedy:
        dataset = uploaded(greedy)
        with greedy.interact(dataset, name(), STEPS):
            with pytest.raises(CloudOverloadedError, match="this tenant has 1 interactive"):
                greedy.interact(dataset, name(), STEPS)
            with connect(server, secrets.token_bytes(32)) as cloud:
                theirs = uploaded(cloud)
                with cloud.interact(theirs, name(), STEPS):
                    pass
        with greedy.interact(dataset, name(), STEPS):
            pass


def test_a_training_process_maps_so_much_memory_and_dies_before_the_server(tmp_path):
    most = 64 * 2**30  # address space, of which torch alone takes some
    with start(tmp_path, "--train-memory", str(most)) as server, connect(server, bytes(32)) as cloud:
        dataset, job = uploaded(cloud), name()
        cloud.start(dataset, job, LONG)
        until(cloud.watch(dataset, job), lambda state: state.step > 0)
        pid = events(server, "training")[-1]["pid"]
        assert resource.prlimit(pid, resource.RLIMIT_AS)[0] == most
        scores = [int(Path(f"/proc/{each}/oom_score_adj").read_text()) for each in (pid, server.pid)]
        assert scores[0] == 500 > scores[1]
        cloud.cancel(dataset, job)


@pytest.mark.slow
def test_a_job_beyond_its_memory_fails_alone_and_says_so(tmp_path):
    batch = 10**5
    config = ServerConfig(training=tmp_path, train_memory=8 * 2**30, threads=1)
    wide = dataset_spec(release=release_config(ir_shape=(64, 1024, 1024)))
    architecture = Architecture(
        target="delta.models:resnet_small",
        arguments={"classes": CLASSES, "in_channels": 1, "width": 64},
        split_at="layer1",
    )
    with ServerThread(config) as server, connect(server, bytes(32)) as cloud:
        dataset, job = name(), name()
        cloud.create(dataset, wide)
        cloud.upload(dataset, chunks_of(RELEASES))
        cloud.start(dataset, job, job_spec(architecture=architecture, fit=FitConfig(epochs=1, batch=batch)))
        last = list(cloud.watch(dataset, job))[-1]
        assert (last.state, last.message) == (
            "failed",
            "the cloud has not enough memory for this job; take a smaller batch or model",
        )
        assert cloud.create(name(), dataset_spec()) == 0
