"""Uploads that break the rules or end early: what is stored is what came whole and was well formed."""

from __future__ import annotations

import queue
import secrets
import time

import grpc
import pytest
from delta_server.app import ServerThread
from delta_server.config import ServerConfig

from delta.wire import training as wire
from delta.wire.services import method_path
from tests.raw_training import B, call, chunk, name, requests_of
from tests.training_jobs import RECORDS, dataset_spec, release_config


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    config = ServerConfig(training=tmp_path_factory.mktemp("store"), train_idle_s=0.5)
    with ServerThread(config) as thread:
        yield thread


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as made:
        yield made


BAD = {
    "a gap": chunk(first=7),
    "no records": chunk(count=0),
    "more than a message may hold": chunk(count=5000),
    "more than the data set": chunk(first=RECORDS - 1),
    "far beyond": chunk(first=2**63),
    "too few bits": chunk(bits=bytes(B)),
    "too many bits": chunk(bits=bytes(3 * B)),
    "a label too high": chunk(labels=b"\xc0"),
    "label padding": chunk(labels=b"\x01"),
    "no labels": chunk(labels=b""),
    "flag padding": chunk(held_out=b"\x01"),
    "a held-out label": chunk(labels=b"\x40", held_out=b"\x80"),
    "a second head": wire.UploadReleasesRequest(head=wire.UploadHead(protocol_version=1, dataset="0" * 32)),
    "no message": b"\xff" * 9,
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_chunk_is_refused_and_what_came_before_it_is_stored(channel, what):
    token, dataset = secrets.token_bytes(32), name()
    requests = requests_of(dataset, name())
    call(channel, "CreateDataset", requests["CreateDataset"], token=token)
    found = call(channel, "UploadReleases", requests["UploadReleases"], chunk(), BAD[what], token=token)
    if what == "too few bits":
        assert found[1].endswith(f"got {B}")
    assert found[::2] == ("INVALID_ARGUMENT", "request"), found
    (raw,) = call(channel, "CreateDataset", requests["CreateDataset"], token=token)
    assert wire.CreateDatasetResponse.FromString(raw).acknowledged == 2


def test_padding_of_a_release_must_be_zero(channel):
    token, dataset = secrets.token_bytes(32), name()
    odd = dataset_spec(
        release=release_config(message=release_config().message.model_copy(update={"shape": (1, 3, 3)}))
    )
    create = wire.CreateDatasetRequest(protocol_version=1, dataset=dataset, spec=wire.encode_spec(odd))
    call(channel, "CreateDataset", create, token=token)
    head = requests_of(dataset, name())["UploadReleases"]
    bad = chunk(count=1, bits=b"\xff\x81", labels=b"\x00", held_out=b"\x00")
    assert call(channel, "UploadReleases", head, bad, token=token)[::2] == ("INVALID_ARGUMENT", "request")


def test_what_is_stored_must_be_sent_again_as_it_was(channel):
    token, dataset = secrets.token_bytes(32), name()
    requests = requests_of(dataset, name())
    call(channel, "CreateDataset", requests["CreateDataset"], token=token)
    head = requests["UploadReleases"]
    call(channel, "UploadReleases", head, chunk(count=4), token=token)
    for other in (chunk(bits=bytes(2 * B)), chunk(first=3, labels=b"\x40"), chunk(first=2, held_out=b"\x80")):
        status, text, _ = call(channel, "UploadReleases", head, other, token=token)
        assert status == "INVALID_ARGUMENT"
        assert "stored already and differ" in text
    (raw,) = call(channel, "UploadReleases", head, chunk(first=3), chunk(first=1), token=token)
    assert wire.UploadReleasesResponse.FromString(raw).acknowledged == 5


def half_an_upload(channel, token, dataset):
    """An upload of four records that goes on, and what feeds it."""
    requests = requests_of(dataset, name())
    call(channel, "CreateDataset", requests["CreateDataset"], token=token)
    feed: queue.SimpleQueue = queue.SimpleQueue()
    for message in (requests["UploadReleases"], chunk(0), chunk(2)):
        feed.put(message.SerializeToString())
    path = method_path(wire.TRAINING_SERVICE, "UploadReleases")
    metadata = ((wire.AUTHORIZATION, wire.bearer(token)),)
    return channel.stream_unary(path).future(iter(feed.get, None), metadata=metadata), feed


def stored(channel, token, dataset):
    (raw,) = call(channel, "CreateDataset", requests_of(dataset, name())["CreateDataset"], token=token)
    return wire.CreateDatasetResponse.FromString(raw).acknowledged


def test_a_silent_upload_is_ended_and_what_came_is_stored(channel):
    token, dataset = secrets.token_bytes(32), name()
    upload, feed = half_an_upload(channel, token, dataset)
    with pytest.raises(grpc.RpcError) as silent:
        upload.result(timeout=20)
    feed.put(None)
    assert "nothing came for" in silent.value.details()
    assert stored(channel, token, dataset) == 4


def test_an_upload_that_is_cut_goes_on_where_it_was(tmp_path):
    token, dataset = secrets.token_bytes(32), name()
    config = ServerConfig(training=tmp_path)
    with ServerThread(config) as server, grpc.insecure_channel(server.address) as channel:
        upload, feed = half_an_upload(channel, token, dataset)
        until = time.monotonic() + 20
        while not stored(channel, token, dataset):  # half a second after they came, the stream still open
            assert time.monotonic() < until
        assert not upload.done()
        upload.cancel()
        feed.put(None)
        head = requests_of(dataset, name())["UploadReleases"]
        (raw,) = call(channel, "UploadReleases", head, chunk(4), token=token)
        assert wire.UploadReleasesResponse.FromString(raw).acknowledged == 6
