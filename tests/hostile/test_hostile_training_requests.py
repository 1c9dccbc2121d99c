"""Clients that break the rules of training: each is refused with the right status, and nothing of others is told."""

from __future__ import annotations

import hashlib
import logging
import secrets

import grpc
import hypothesis.strategies as st
import pytest
from delta_client import GrpcTrainingCloud
from delta_server.app import ServerThread
from delta_server.config import ServerConfig
from hypothesis import HealthCheck, given, settings

from delta.bundle.manifest import Architecture
from delta.errors import CloudDeniedError, CloudError, CloudMismatchError, CloudStorageError, RequestError
from delta.wire import training as wire
from tests.raw_training import METHODS, SPEC, B, call, chunk, name, requests_of
from tests.training_jobs import CLASSES, LIKE, RECORDS, chunks_of, dataset_spec, job_spec, stored_releases

RELEASES = stored_releases()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    config = ServerConfig(
        training=tmp_path_factory.mktemp("store"),
        threads=1,
        handshake_s=0.3,
        train_idle_s=0.5,
        tenants=1000,
        tenant_bytes=10**6,
        dataset_jobs=2,
    )
    with ServerThread(config) as thread:
        yield thread


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as made:
        yield made


def tenant(server):
    """A new tenant's client."""
    return GrpcTrainingCloud(server.address, secrets.token_bytes(32), timeout_s=20.0)


HEX = "ab" * 32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "metadata",
    [
        (),
        ((wire.AUTHORIZATION, ""),),
        ((wire.AUTHORIZATION, HEX),),
        ((wire.AUTHORIZATION, f"Basic {HEX}"),),
        ((wire.AUTHORIZATION, f"Bearer {HEX[:-2]}"),),
        ((wire.AUTHORIZATION, f"Bearer {HEX.upper()}"),),
        ((wire.AUTHORIZATION, f"Bearer {HEX}0"),),
        ((wire.AUTHORIZATION, f"Bearer {HEX}"), (wire.AUTHORIZATION, f"Bearer {HEX}")),
    ],
)
def test_every_call_needs_one_well_formed_token(channel, method, metadata):
    request = requests_of(name(), name())[method]
    status, text, code = call(channel, method, request, metadata=metadata)
    assert (status, code) == ("UNAUTHENTICATED", "cloud-denied")
    assert "Bearer <64 hex digits>" in text
    assert HEX not in text


def test_what_is_anothers_is_as_if_it_were_not_there(server, channel):
    dataset, job = name(), name()
    with tenant(server) as owner:
        owner.create(dataset, SPEC)
        owner.upload(dataset, chunks_of(RELEASES))
    stranger, absent = secrets.token_bytes(32), secrets.token_bytes(32)
    for token in (stranger, absent):  # the first has data sets of its own
        if token == stranger:
            call(channel, "CreateDataset", requests_of(name(), job)["CreateDataset"], token=token)
        theirs, nobodys = requests_of(dataset, job), requests_of(name(), job)
        for method in METHODS:
            if method not in ("CreateDataset", "DeleteDataset"):
                found = call(channel, method, theirs[method], token=token)
                assert found == call(channel, method, nobodys[method], token=token)
                assert found[::2] == ("UNAUTHENTICATED", "cloud-denied"), (method, found)
        assert call(channel, "DeleteDataset", theirs["DeleteDataset"], token=token) == [b""]


def test_a_data_set_outlives_what_strangers_do_under_its_name(server):
    dataset = name()
    with tenant(server) as owner, tenant(server) as stranger:
        owner.create(dataset, SPEC)
        owner.upload(dataset, chunks_of(RELEASES))
        assert stranger.create(dataset, dataset_spec(records=5)) == 0
        stranger.delete(dataset)
        assert owner.create(dataset, SPEC) == RECORDS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "wrong",
    ["../../x", "", "A" * 32, "0" * 31, "0" * 33, f"{'0' * 30}/x", f"{'0' * 32}\n", "\x00" * 32, "é" * 32],
)
def test_names_are_checked_before_any_path_is_made(server, channel, method, wrong):
    token = secrets.token_bytes(32)
    for dataset, job in ((wrong, name()), (name(), wrong)):
        request = requests_of(dataset, job)[method]
        if job == wrong and method in ("CreateDataset", "DeleteDataset", "UploadReleases"):
            continue
        status, text, code = call(channel, method, request, token=token)
        assert (status, code) == ("INVALID_ARGUMENT", "request")
        assert "32 lower-case hex digits" in text


@pytest.mark.parametrize("method", METHODS)
def test_another_protocol_version_is_refused(channel, method):
    found = call(
        channel, method, requests_of(name(), name(), version=2)[method], token=secrets.token_bytes(32)
    )
    assert found[::2] == ("FAILED_PRECONDITION", "cloud-mismatch")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("raw", [b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", b""])
def test_malformed_messages_are_refused(channel, method, raw):
    found = call(channel, method, raw, token=secrets.token_bytes(32))
    assert isinstance(found, tuple)
    assert found[0] in ("INVALID_ARGUMENT", "FAILED_PRECONDITION"), found


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200))
def test_any_bytes_are_refused_by_every_method(channel, raw):
    for method in METHODS:
        found = call(channel, method, raw, token=bytes(32))
        assert isinstance(found, tuple)
        assert found[0] in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNAUTHENTICATED"), found


def test_a_unary_call_needs_a_deadline(channel):
    found = call(
        channel, "CreateDataset", requests_of(name(), name())["CreateDataset"], token=bytes(32), timeout=None
    )
    assert found[::2] == ("INVALID_ARGUMENT", "request")


def _specs():
    good = wire.encode_spec(SPEC).decode()
    return {
        "no JSON": (b"{", "INVALID_ARGUMENT"),
        "a megabyte": (b" " * 2**20, "INVALID_ARGUMENT"),
        "deep": (b"[" * 100_000, "INVALID_ARGUMENT"),
        "an unknown key": (good.replace("{", '{"more":1,', 1).encode(), "INVALID_ARGUMENT"),
        "no records": (good.replace(f'"records":{RECORDS}', '"records":0').encode(), "INVALID_ARGUMENT"),
        "an empty release": (good.replace("[1,16,16]", "[0,16,16]").encode(), "INVALID_ARGUMENT"),
        "a negative release": (good.replace("[1,16,16]", "[-1,-16,16]").encode(), "INVALID_ARGUMENT"),
        "an endless release": (good.replace("[1,16,16]", "[9999999,16,16]").encode(), "INVALID_ARGUMENT"),
        "an endless input": (
            good.replace('[1,16,16],"std"', '[1,9999916,16],"std"').encode(),
            "INVALID_ARGUMENT",
        ),
        "endless representations": (
            good.replace('"ir_shape":[', '"ir_shape":[99999').encode(),
            "INVALID_ARGUMENT",
        ),
        "representations of no size": (
            good.replace('"ir_shape":[4,16,16]', '"ir_shape":[4,0,16]').encode(),
            "INVALID_ARGUMENT",
        ),
        "more than its share": (
            good.replace(f'"records":{RECORDS}', '"records":90000000').encode(),
            "RESOURCE_EXHAUSTED",
        ),
    }


@pytest.mark.parametrize("what", _specs())
def test_a_data_set_that_cannot_be_is_refused_in_one_line(channel, what):
    spec, expected = _specs()[what]
    request = wire.CreateDatasetRequest(protocol_version=1, dataset=name(), spec=spec)
    status, text, _ = call(channel, "CreateDataset", request, token=secrets.token_bytes(32))
    assert status == expected, text
    assert "\n" not in text
    assert len(text) < 1000


def test_a_tenants_share_holds_over_all_its_data_sets(server):
    with tenant(server) as cloud:
        names = [name() for _ in range(3)]
        for dataset in names:
            cloud.create(dataset, SPEC)
        with pytest.raises(CloudStorageError, match="are left to this tenant"):
            cloud.create(name(), SPEC)
        cloud.delete(names[0])
        cloud.create(name(), SPEC)


@pytest.mark.parametrize("method", ["UploadReleases", "TrainInteractively"])
def test_a_stream_begins_with_its_head(channel, method):
    other = chunk() if method == "UploadReleases" else wire.TrainInteractivelyRequest(count=1)
    for first in ([other], []):
        found = call(channel, method, *first, token=bytes(32))
        assert found[::2] == ("INVALID_ARGUMENT", "request")


def test_jobs_that_cannot_be_are_refused(server):
    with tenant(server) as cloud:
        dataset = name()
        cloud.create(dataset, SPEC)
        with pytest.raises(RequestError, match="0 of 60 releases are stored"):
            cloud.start(dataset, name(), job_spec())
        cloud.upload(dataset, chunks_of(RELEASES))
        foreign = Architecture(target="os:system", arguments={"command": "true"}, split_at="x")
        with pytest.raises(CloudMismatchError, match="--allow os:system"):
            cloud.start(dataset, name(), job_spec(architecture=foreign))
        with pytest.raises(CloudMismatchError, match="--allow os:system"):
            cloud.interact(dataset, name(), job_spec(architecture=foreign, steps=3))
        with pytest.raises(RequestError, match="interactive"):
            cloud.start(dataset, name(), job_spec(steps=3))
        with pytest.raises(RequestError, match="steps"):
            cloud.interact(dataset, name(), job_spec())
        with pytest.raises(RequestError, match="step 4 of a job of 3"):
            cloud.interact(dataset, name(), job_spec(steps=3), step=4)
        hidden, none = name(), stored_releases(held_out=RECORDS - 1)
        cloud.create(hidden, SPEC)
        cloud.upload(hidden, chunks_of(none))
        with pytest.raises(RequestError, match="1 releases to train on"):
            cloud.start(hidden, name(), job_spec())
        for job in (name(),):
            with pytest.raises(CloudDeniedError):
                list(cloud.watch(dataset, job))


def test_a_bad_batch_of_an_interactive_training_fails_alone(server, channel):
    token, dataset = secrets.token_bytes(32), name()
    requests = requests_of(dataset, name())
    call(channel, "CreateDataset", requests["CreateDataset"], token=token)
    good = wire.TrainInteractivelyRequest(count=2, bits=bytes(2 * B), labels=b"\x00", update=True)
    bad = [
        wire.TrainInteractivelyRequest(count=2, bits=bytes(B), labels=b"\x00", update=True),
        wire.TrainInteractivelyRequest(count=0),
        wire.TrainInteractivelyRequest(count=1, bits=bytes(B), labels=b"\x00", update=True),
        wire.TrainInteractivelyRequest(count=2, bits=bytes(2 * B), labels=b"\xf0", update=True),
        wire.TrainInteractivelyRequest(count=2, bits=bytes(2 * B), labels=b"\x00"),
        requests["TrainInteractively"],
        b"\xff" * 9,
    ]
    batches = [message for each in bad for message in (each, good)][: 2 * 3] + bad[3:]
    answers = call(channel, "TrainInteractively", requests["TrainInteractively"], *batches, good, token=token)
    assert isinstance(answers, list), answers
    first, *rest = (wire.TrainInteractivelyResponse.FromString(raw) for raw in answers)
    assert first.ready
    codes = [answer.failure.code for answer in rest]
    assert codes == [
        "request",
        "",
        "request",
        "",
        "request",
        "",
        *["request"] * 5,
    ]  # 3 steps, and one too many
    assert all(len(answer.logits) == 4 * 2 * CLASSES for answer in rest if not answer.failure.code)


def test_no_token_is_logged(server, caplog):
    logger, token = logging.getLogger("delta_server"), secrets.token_bytes(32)
    level = logger.level
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    try:
        with GrpcTrainingCloud(server.address, token) as cloud:
            dataset = name()
            cloud.create(dataset, SPEC)
            assert cloud.upload(dataset, chunks_of(RELEASES)) == RECORDS
            with pytest.raises(CloudError):
                cloud.fetch(dataset, name(), like=LIKE)
    finally:
        logger.setLevel(level)
        logger.removeHandler(caplog.handler)
    assert '"records": 60' in caplog.text
    assert "call refused" in caplog.text
    assert token.hex() not in caplog.text
    assert hashlib.sha256(token).hexdigest() not in caplog.text
