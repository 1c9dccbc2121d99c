"""Jobs that ended on a real server: what failed can be started again, and no job takes all of the cloud."""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import signal

import pytest
import torch
from delta_server.app import ServerThread
from delta_server.config import ServerConfig
from delta_server.training.datasets import promised_bytes
from delta_server.training.jobs import SPEC as JOB_SPEC
from delta_server.training.jobs import read_job
from delta_server.training.runner import Runner, begin_again, end_job

from delta.bundle.store import weights_hash
from delta.errors import CloudStorageError, CloudTrainingError
from delta.files import write_whole
from delta.training.cloud import JobState
from delta.training.cloud_trainer import train_on_releases
from delta.training.config import FitConfig
from delta.wire.training import encode_spec
from tests.training_jobs import LIKE, job_spec
from tests.training_servers import (
    LONG,
    RELEASES,
    SPEC,
    connect,
    events,
    kill,
    name,
    start,
    until,
    uploaded,
)

A_WHILE = job_spec(fit=FitConfig(epochs=100, batch=16))
WEIGHTS_BYTES = 20_000  # fewer than those of the tests' model


def steps_of(folder):
    """Steps of the checkpoints in a store."""
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.rglob("step-*.json"))


def undisturbed(spec):
    return weights_hash(
        dict(train_on_releases(SPEC, spec, RELEASES, device=torch.device("cpu")).state_dict())
    )


def assert_ended(pid):
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_a_job_that_met_a_full_disk_goes_on_once_there_is_room(tmp_path):
    token, job = secrets.token_bytes(32), name()
    server = start(tmp_path, env={"DELTA_CHECKPOINT_STEPS": "20"})
    with connect(server, token) as cloud:
        dataset = uploaded(cloud)
        cloud.start(dataset, job, A_WHILE)
        states = cloud.watch(dataset, job)
        until(states, lambda _: len(steps_of(tmp_path)) > 0)
        for process in (events(server, "training")[-1]["pid"], server.pid):
            limits = resource.prlimit(process, resource.RLIMIT_FSIZE)
            resource.prlimit(process, resource.RLIMIT_FSIZE, (WEIGHTS_BYTES, limits[1]))  # no file beyond it
        failed = list(states)[-1]
        assert failed.state == "failed"
        assert failed.message == (
            "the job's state cannot be stored, or read again; the cloud's operator must make room"
        )
    kept = steps_of(tmp_path)
    assert kept, "its checkpoints stay"
    kill(server)
    with start(tmp_path) as server, connect(server, token) as cloud:
        cloud.create(dataset, SPEC)
        (state,) = cloud.watch(dataset, job)
        assert (state.state, state.message) == ("failed", failed.message)
        assert not events(server, "training")
        with pytest.raises(CloudTrainingError, match="start it again"):
            cloud.fetch(dataset, job, like=LIKE)
        cloud.start(dataset, job, A_WHILE)
        states = list(cloud.watch(dataset, job))
        assert states[0].state in ("waiting", "running")
        assert states[-1].state == "done"
        assert min(state.step for state in states if state.step) > kept[-1]  # nothing is trained twice
        assert weights_hash(cloud.fetch(dataset, job, like=LIKE)) == undisturbed(A_WHILE)
        cloud.start(dataset, job, A_WHILE)  # done, it stays done
        assert [state.state for state in cloud.watch(dataset, job)] == ["done"]


def test_a_cancelled_job_stays_cancelled(tmp_path):
    token, job = secrets.token_bytes(32), name()
    with start(tmp_path) as server, connect(server, token) as cloud:
        dataset = uploaded(cloud)
        cloud.start(dataset, job, LONG)
        cloud.cancel(dataset, job)
        cloud.start(dataset, job, LONG)
        assert [state.state for state in cloud.watch(dataset, job)] == ["cancelled"]
    with start(tmp_path) as server, connect(server, token) as cloud:
        cloud.start(dataset, job, LONG)
        assert [state.state for state in cloud.watch(dataset, job)] == ["cancelled"]
        assert not events(server, "training")


@pytest.mark.slow
def test_processes_that_die_again_and_again_fail_a_job_and_its_attempts_are_counted_anew(tmp_path):
    with start(tmp_path) as server, connect(server, secrets.token_bytes(32)) as cloud:
        dataset, job = uploaded(cloud), name()

        def kill_worker(states, number):
            until(states, lambda _: len(events(server, "training")) == number)
            os.kill(events(server, "training")[-1]["pid"], signal.SIGKILL)

        cloud.start(dataset, job, job_spec())
        states = cloud.watch(dataset, job)
        for number in (1, 2, 3):
            kill_worker(states, number)
        last = list(states)[-1]
        assert (last.state, last.message) == (
            "failed",
            "the training process ended with status -9; see the cloud's log",
        )
        cloud.start(dataset, job, job_spec())
        states = cloud.watch(dataset, job)
        for number in (4, 5):
            kill_worker(states, number)
        assert list(states)[-1].state == "done"
        assert weights_hash(cloud.fetch(dataset, job, like=LIKE)) == undisturbed(job_spec())


def test_an_endless_job_is_ended_and_the_next_one_gets_its_turn(tmp_path):
    with start(tmp_path, "--train-job-s", "1") as server, connect(server, bytes(32)) as cloud:
        dataset, jobs = uploaded(cloud), (name(), name())
        for job in jobs:
            cloud.start(dataset, job, LONG)
        for job in jobs:
            last = list(cloud.watch(dataset, job))[-1]
            assert (last.state, last.message) == (
                "failed",
                "the job has trained for 1 s, as long as this cloud lets one; start it again to go on from its last "
                "checkpoint",
            )
        cloud.start(dataset, jobs[0], LONG)
        assert next(cloud.watch(dataset, jobs[0])).state in ("waiting", "running")
        assert list(cloud.watch(dataset, jobs[0]))[-1].state == "failed"
        pids = [line["pid"] for line in events(server, "training")]
        assert len(pids) == 3
        for pid in pids:
            assert_ended(pid)


@pytest.mark.slow
def test_what_jobs_leave_counts_in_the_tenants_share(tmp_path):
    """A job that begins in a share with room may outgrow it; none begins in a full one, until there is room."""
    full = 2 * promised_bytes(SPEC) + WEIGHTS_BYTES
    config = ServerConfig(training=tmp_path, tenant_bytes=full, threads=1)
    with ServerThread(config) as server, connect(server, secrets.token_bytes(32)) as cloud:
        datasets, jobs = (uploaded(cloud), uploaded(cloud)), (name(), name())
        for dataset, job in zip(datasets, jobs, strict=True):
            cloud.start(dataset, job, job_spec())  # both are taken: nothing is left by any yet
        assert list(cloud.watch(datasets[0], jobs[0]))[-1].state == "done"
        refused = list(cloud.watch(datasets[1], jobs[1]))[-1]
        assert refused.state == "failed"
        assert refused.message.startswith("this tenant's data sets and jobs take ")
        assert refused.message.endswith(f" of {full} bytes; delete a data set, then start the job again")
        for call in (
            lambda: cloud.start(datasets[0], name(), job_spec()),
            lambda: cloud.interact(datasets[0], name(), job_spec(steps=1)).__enter__(),
            lambda: cloud.create(name(), SPEC),
        ):
            with pytest.raises(CloudStorageError, match="delete"):
                call()
        cloud.start(datasets[0], jobs[0], job_spec())  # what is there already is no error
        assert cloud.fetch(datasets[0], jobs[0], like=LIKE)
        with connect(server, secrets.token_bytes(32)) as other:
            assert other.create(name(), SPEC) == 0  # the share is of one tenant
        cloud.delete(datasets[0])
        cloud.start(datasets[1], jobs[1], job_spec())
        assert list(cloud.watch(datasets[1], jobs[1]))[-1].state == "done"


def entered(folder):
    """A job's folder as the server writes it down, and the job."""
    write_whole(folder / JOB_SPEC, encode_spec(job_spec()))
    return read_job(folder)


def test_the_first_end_holds(tmp_path):
    """Whoever cancels a job while it fails, or hears of a step after its end, changes nothing."""

    async def run():
        job = entered(tmp_path)
        await asyncio.gather(end_job(job, "cancelled"), end_job(job, "failed", "too late"))
        job.set(JobState("running", 3, 6))
        await begin_again(job)
        return job.state

    assert asyncio.run(run()) == JobState("cancelled")
    assert read_job(tmp_path).state == JobState("cancelled")


def test_a_job_that_failed_and_is_submitted_at_once_runs_again(tmp_path):
    """Its earlier task may not be forgotten yet."""
    asked = []

    def no_room(folder):
        asked.append(folder)
        raise CloudStorageError("no room")

    async def run():
        job, runner = entered(tmp_path), Runner(ServerConfig(training=tmp_path), no_room)
        for _ in range(3):
            runner.submit(job)
            runner.submit(job)  # it waits already
            while not job.final:
                await job.changed.wait()
            assert job.state.message == "no room"
            job.begin_again(job.reopened())
            assert job.state == read_job(tmp_path).state == JobState("waiting")
        await runner.close()

    async def in_time():
        async with asyncio.timeout(20):
            await run()

    asyncio.run(in_time())
    assert len(asked) == 3
