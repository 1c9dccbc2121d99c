"""Promoted models of a real server: whose they are, how many there may be, and how they go again."""

from __future__ import annotations

import secrets
import shutil

import grpc
import pytest
from delta_client import list_models
from delta_server.app import ServerThread
from delta_server.config import ServerConfig
from delta_server.training.datasets import promised_bytes

from delta.bundle.store import weights_hash
from delta.errors import CloudMismatchError, CloudOverloadedError, CloudStorageError
from delta.training.config import FitConfig
from delta.wire import training as wire
from tests.raw_training import call
from tests.training_jobs import LIKE, job_spec, manifest_of
from tests.training_servers import SPEC, connect, name, uploaded

SHORT = job_spec(fit=FitConfig(epochs=1, batch=16))


def trained(cloud):
    """A data set, a finished job on it, and the hash of its weights."""
    dataset, job = uploaded(cloud), name()
    cloud.start(dataset, job, SHORT)
    assert list(cloud.watch(dataset, job))[-1].state == "done"
    return dataset, job, weights_hash(cloud.fetch(dataset, job, like=LIKE))


def promote(cloud, source, model):
    dataset, job, found = source
    cloud.promote(dataset, job, manifest_of(SPEC, SHORT, weights_hash=found, name=model))


def withdraw(server, token, source):
    request = wire.PromoteCheckpointRequest(
        protocol_version=1, name=wire.JobName(dataset=source[0], job=source[1])
    )
    with grpc.insecure_channel(server.address) as channel:
        return call(channel, "PromoteCheckpoint", request, token=token)


def served(server):
    return sorted(model.binding.model for model in list_models(server.address))


@pytest.mark.slow
def test_models_are_limited_over_all_tenants_and_a_withdrawn_one_makes_room(tmp_path):
    config = ServerConfig(training=tmp_path, promoted_models=2, tenants=2, threads=1)
    first, second = secrets.token_bytes(32), secrets.token_bytes(32)
    with ServerThread(config) as server:
        with connect(server, first) as cloud:
            source = trained(cloud)
            promote(cloud, source, "one")
            cloud.delete(source[0])  # the model stays
        with connect(server, second) as cloud:
            other = trained(cloud)
            promote(cloud, other, "two")
            with pytest.raises(CloudOverloadedError, match="2 trained models are served here already"):
                promote(cloud, other, "three")
            promote(cloud, other, "two")  # again is no error
        third = connect(server, secrets.token_bytes(32))
        with third as cloud, pytest.raises(CloudOverloadedError, match="2 tenants have data sets or models"):
            cloud.create(name(), SPEC)  # who has a model served is still here
        assert withdraw(server, second, source) == [b""]  # another's: nothing happens
        assert served(server) == ["one", "two"]
    with ServerThread(config) as server:
        assert served(server) == ["one", "two"]
        assert withdraw(server, first, source) == [b""]
        assert withdraw(server, first, source) == [b""]
        assert served(server) == ["two"]
        assert [path.name for path in (tmp_path / "promoted").iterdir()] == ["two"]
        with connect(server, second) as cloud:
            cloud.create(other[0], SPEC)
            promote(cloud, other, "three")
        assert served(server) == ["three", "two"]


def test_models_count_in_their_tenants_share_when_their_data_sets_are_gone(tmp_path):
    token = secrets.token_bytes(32)
    with ServerThread(ServerConfig(training=tmp_path, threads=1)) as server, connect(server, token) as cloud:
        source = trained(cloud)
        promote(cloud, source, "one")
        cloud.delete(source[0])
    size = sum(path.stat().st_size for path in (tmp_path / "promoted").rglob("*") if path.is_file())
    config = ServerConfig(training=tmp_path, tenant_bytes=promised_bytes(SPEC) + size // 2, threads=1)
    with ServerThread(config) as server:
        with connect(server, token) as cloud, pytest.raises(CloudStorageError, match="left to this tenant"):
            cloud.create(name(), SPEC)
        with connect(server, secrets.token_bytes(32)) as cloud:
            cloud.create(name(), SPEC)
        withdraw(server, token, source)
        with connect(server, token) as cloud:
            cloud.create(name(), SPEC)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["manifest", "owner"])
def test_a_model_that_cannot_be_served_keeps_its_name_and_its_owner(tmp_path, fault):
    config = ServerConfig(training=tmp_path / "store", threads=1)
    owner, stranger = secrets.token_bytes(32), secrets.token_bytes(32)
    home = tmp_path / "store/promoted/hospital"
    with ServerThread(config) as server, connect(server, owner) as cloud:
        promote(cloud, source := trained(cloud), "hospital")
    away = home / {"manifest": "part/manifest.json", "owner": "owner"}[fault]
    shutil.move(away, tmp_path / "away")
    with ServerThread(config) as server:
        assert served(server) == []
        with (
            connect(server, stranger) as cloud,
            pytest.raises(CloudMismatchError, match="served here already"),
        ):
            promote(cloud, trained(cloud), "hospital")
        if fault == "manifest":
            with connect(server, owner) as cloud:
                cloud.create(source[0], SPEC)
                promote(cloud, source, "hospital")  # mends it
            assert served(server) == ["hospital"]
    shutil.move(tmp_path / "away", away)
    with ServerThread(config) as server:
        assert served(server) == ["hospital"]


def test_a_bundle_of_the_server_is_not_replaced_by_an_earlier_model_of_its_name(tmp_path):
    """A model was promoted; then the operator serves a bundle of the same name, which stays."""
    config = ServerConfig(training=tmp_path / "store", threads=1)
    token = secrets.token_bytes(32)
    with ServerThread(config) as server, connect(server, token) as cloud:
        promote(cloud, source := trained(cloud), "ours")
    bundle = shutil.copytree(tmp_path / "store/promoted/ours/part", tmp_path / "bundle")
    with ServerThread(config.model_copy(update={"bundles": (bundle,)})) as server:
        with connect(server, token) as cloud:
            cloud.create(source[0], SPEC)
            with pytest.raises(CloudMismatchError, match="served here already"):
                promote(cloud, source, "ours")
        withdraw(server, token, source)
        assert served(server) == ["ours"]
