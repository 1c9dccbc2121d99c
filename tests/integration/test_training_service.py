"""The training of a real server: what it has acknowledged outlives it, and so do its jobs."""

from __future__ import annotations

import json
import os
import resource
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from delta_client import GrpcTrainingCloud, list_models
from delta_server.app import ServerThread
from delta_server.config import ServerConfig

from delta.bundle.manifest import Architecture
from delta.bundle.store import weights_hash
from delta.errors import (
    CloudDeniedError,
    CloudError,
    CloudMismatchError,
    CloudOverloadedError,
    CloudStorageError,
    CloudTrainingError,
    CloudUnavailableError,
    ConfigError,
)
from delta.training.cloud import UploadChunk
from delta.training.cloud_trainer import train_on_releases
from tests.training_jobs import CLASSES, HELD_OUT, LIKE, RECORDS, chunks_of, job_spec, manifest_of
from tests.training_servers import (
    LONG,
    RELEASES,
    SOME_SECONDS,
    SPEC,
    connect,
    events,
    kill,
    name,
    start,
    until,
    uploaded,
)

DELTA = (sys.executable, "-m", "delta.cli")


class Finished:
    """A job that outlived its own process and its server, on the server that finished it."""

    def __init__(self, folder) -> None:
        self.folder, self.token = folder, secrets.token_bytes(32)
        self.dataset, self.job = name(), name()
        self.steps: list[int] = []
        self.kept = self._upload_until_killed()
        self.server = start(folder)
        with connect(self.server, self.token) as cloud:
            self.acknowledged = cloud.create(self.dataset, SPEC)
            self.uploaded = cloud.upload(self.dataset, chunks_of(RELEASES, start=self.acknowledged))
            cloud.start(self.dataset, self.job, SOME_SECONDS)
            states = cloud.watch(self.dataset, self.job)
            self.steps.append(until(states, lambda state: state.step > 0).step)
            (training,) = events(self.server, "training")
            os.kill(training["pid"], signal.SIGKILL)
            again = until(states, lambda _: len(events(self.server, "training")) == 2)
            self.steps.append(again.step)
        kill(self.server)
        self.server = start(folder)
        with connect(self.server, self.token) as cloud:
            self.states = list(cloud.watch(self.dataset, self.job))

    def _upload_until_killed(self) -> int:
        """The server dies under an upload: what it had acknowledged then."""
        with start(self.folder) as server, connect(server, self.token) as cloud:
            cloud.create(self.dataset, SPEC)

            def chunks() -> Iterator[UploadChunk]:
                yield from chunks_of(RELEASES, stop=32)
                with connect(server, self.token) as other:
                    while other.create(self.dataset, SPEC) < 32:
                        pass
                kill(server)
                yield from chunks_of(RELEASES, start=32)

            with pytest.raises(CloudUnavailableError):
                cloud.upload(self.dataset, chunks())
        return 32


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    made = Finished(tmp_path_factory.mktemp("store"))
    yield made
    made.server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One whose store is empty at first."""
    with start(tmp_path_factory.mktemp("shared")) as process:
        yield process


def test_what_was_acknowledged_outlives_the_server(finished):
    assert finished.acknowledged == finished.kept
    assert finished.uploaded == RECORDS


def test_a_job_outlives_its_process_and_its_server_and_ends_as_if_undisturbed(finished):
    assert finished.states[-1].state == "done"
    assert finished.states[-1].step == finished.states[-1].steps == 450
    model = train_on_releases(SPEC, SOME_SECONDS, RELEASES, device=torch.device("cpu"))
    with connect(finished.server, finished.token) as cloud:
        cloud.create(finished.dataset, SPEC)
        weights = cloud.fetch(finished.dataset, finished.job, like=LIKE)
        logits = cloud.held_out_logits(finished.dataset, finished.job, records=HELD_OUT)
    assert weights_hash(weights) == weights_hash(dict(model.state_dict()))
    assert logits.shape == (HELD_OUT, CLASSES)


def test_a_promoted_model_belongs_to_its_tenant_and_outlives_the_server(finished):
    with connect(finished.server, finished.token) as cloud:
        weights = cloud.fetch(finished.dataset, finished.job, like=LIKE)
        manifest = manifest_of(SPEC, SOME_SECONDS, weights_hash=weights_hash(weights), name="ours")
        cloud.promote(finished.dataset, finished.job, manifest)
        cloud.promote(finished.dataset, finished.job, manifest)  # again is no error
    with connect(finished.server, secrets.token_bytes(32)) as stranger:
        dataset, job = uploaded(stranger), name()
        with pytest.raises(CloudDeniedError):
            stranger.promote(finished.dataset, finished.job, manifest)
        stranger.start(dataset, job, job_spec())
        assert list(stranger.watch(dataset, job))[-1].state == "done"
        other = manifest_of(
            SPEC, job_spec(), weights_hash=weights_hash(stranger.fetch(dataset, job, like=LIKE)), name="ours"
        )
        with pytest.raises(CloudMismatchError, match="'ours' is served here already"):
            stranger.promote(dataset, job, other)
    finished.server.stop()
    finished.server = start(finished.folder)
    (served,) = list_models(finished.server.address)
    assert served.binding == manifest.binding


def test_cancelled_and_deleted_jobs_end_and_so_do_their_processes(server):
    token = secrets.token_bytes(32)
    with connect(server, token) as cloud, connect(server, token) as other:
        dataset, job, waiting = uploaded(cloud), name(), name()
        cloud.start(dataset, job, LONG)
        cloud.start(dataset, waiting, LONG)
        states, seen = cloud.watch(dataset, job), []
        watcher = threading.Thread(target=lambda: seen.extend(other.watch(dataset, job)))
        watcher.start()
        until(states, lambda state: state.step > 0)
        assert next(cloud.watch(dataset, waiting)).state == "waiting"  # one trains at a time
        cloud.cancel(dataset, waiting)
        assert [state.state for state in cloud.watch(dataset, waiting)] == ["cancelled"]
        with pytest.raises(CloudTrainingError, match="cancelled"):
            cloud.fetch(dataset, waiting, like=LIKE)
        training = events(server, "training")[-1]
        cloud.delete(dataset)
        assert list(states)[-1].state == "cancelled"
        watcher.join(timeout=20)
        assert seen[-1].state == "cancelled"
        with pytest.raises(ProcessLookupError):
            os.kill(training["pid"], 0)
        with pytest.raises(CloudDeniedError):
            next(cloud.watch(dataset, job))


def test_a_server_that_stops_ends_watches_and_processes(tmp_path):
    token = secrets.token_bytes(32)
    server = start(tmp_path)
    cloud = GrpcTrainingCloud(server.address, token, pauses_s=())
    dataset, job = uploaded(cloud), name()
    cloud.start(dataset, job, LONG)
    states = cloud.watch(dataset, job)
    until(states, lambda state: state.step > 0)
    (training,) = events(server, "training")
    server.terminate()
    with pytest.raises(CloudUnavailableError):
        list(states)
    assert server.stop() == 0
    cloud.close()
    with pytest.raises(ProcessLookupError):
        os.kill(training["pid"], 0)


def test_a_job_that_fails_says_why(server):
    wrong = Architecture(
        target="delta.models:resnet_small",
        arguments={"classes": 4, "in_channels": 1, "width": 4},
        split_at="layer1",
    )
    with connect(server, secrets.token_bytes(32)) as cloud:
        dataset, job = uploaded(cloud), name()
        cloud.start(dataset, job, job_spec(architecture=wrong))
        last = list(cloud.watch(dataset, job))[-1]
        assert (last.state, last.message) == ("failed", "the model has 4 classes, the data set 3")
        with pytest.raises(CloudError, match="failed"):
            cloud.held_out_logits(dataset, job, records=HELD_OUT)


def test_a_full_disk_loses_nothing_and_is_got_over(tmp_path):
    with start(tmp_path) as server, connect(server, secrets.token_bytes(32)) as cloud:
        dataset, size = name(), SPEC.release.payload_bytes
        cloud.create(dataset, SPEC)
        assert cloud.upload(dataset, chunks_of(RELEASES, stop=16)) == 16
        limits = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (40 * size, limits[1]))  # no file beyond it
        with pytest.raises(CloudStorageError, match="16 are stored for good"):
            cloud.upload(dataset, chunks_of(RELEASES, start=16))
        (bits,) = tmp_path.rglob("bits.bin")
        assert bits.stat().st_size == 16 * size
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, limits)
        assert cloud.create(dataset, SPEC) == 16
        assert cloud.upload(dataset, chunks_of(RELEASES, start=16)) == RECORDS
        assert bits.read_bytes() == RELEASES.bits.numpy().tobytes()


def test_tenants_and_jobs_are_limited(tmp_path):
    config = ServerConfig(training=tmp_path, tenants=1, dataset_jobs=1, threads=1)
    with ServerThread(config) as server:
        first, second = secrets.token_bytes(32), secrets.token_bytes(32)
        with connect(server, first) as cloud, connect(server, second) as stranger:
            dataset = uploaded(cloud)
            with pytest.raises(CloudOverloadedError, match="1 tenants"):
                stranger.create(name(), SPEC)
            cloud.start(dataset, name(), LONG)
            with pytest.raises(CloudOverloadedError, match="1 jobs already"):
                cloud.start(dataset, name(), LONG)
            cloud.delete(dataset)
            assert not any((tmp_path / "tenants").iterdir())
            assert stranger.create(name(), SPEC) == 0  # the first has left


def test_a_damaged_data_set_is_skipped_and_can_be_made_again(tmp_path):
    token, dataset = secrets.token_bytes(32), name()
    config = ServerConfig(training=tmp_path, threads=1)
    with ServerThread(config) as server, connect(server, token) as cloud:
        cloud.create(dataset, SPEC)
        cloud.upload(dataset, chunks_of(RELEASES))
    (bits,) = tmp_path.rglob("bits.bin")
    os.truncate(bits, 10)
    with ServerThread(config) as server, connect(server, token) as cloud:
        assert cloud.create(dataset, SPEC) == 0
        assert cloud.upload(dataset, chunks_of(RELEASES)) == RECORDS


def test_one_server_holds_a_store(tmp_path):
    config = ServerConfig(training=tmp_path)
    in_use = pytest.raises(ConfigError, match="in use by another server")
    with ServerThread(config), in_use, ServerThread(config):
        pass
    with ServerThread(config):
        pass


def test_a_server_serves_or_trains():
    with pytest.raises(ConfigError, match="--bundle DIR or --training DIR"):
        ServerConfig.parse({}, what="server")


def test_a_server_without_a_store_does_not_train(toy_cloud):
    refused = pytest.raises(CloudMismatchError, match="--training DIR")
    with connect(toy_cloud, secrets.token_bytes(32)) as cloud, refused:
        cloud.create(name(), SPEC)


def test_delta_serve_trains(tmp_path):
    report = tmp_path / "report.json"
    command = [*DELTA, "serve", "--training", str(tmp_path / "store"), "--listen", "127.0.0.1:0"]
    command += ["--train-job-s", "60", "--train-memory", str(2**36)]
    serve = subprocess.Popen(
        [*command, "--json", str(report)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert serve.stdout is not None
        assert b"(models: none, training, " in serve.stdout.readline()
        told = json.loads(report.read_text())
        with GrpcTrainingCloud(told["address"], bytes(32)) as cloud:
            uploaded(cloud)
        assert told["models"] == list_models(told["address"]) == []
    finally:
        serve.terminate()
        serve.communicate(timeout=60)
    assert serve.returncode == 0
