# ruff: noqa: SIM117 - a session inside a cloud, and what it must raise inside both, read best nested
"""Training clouds that break the rules: one clear error in time, and nothing more is sent because of it."""

from __future__ import annotations

import itertools

import grpc
import pytest
import torch

from delta.errors import (
    CloudAnswerError,
    CloudDeadlineError,
    CloudDeniedError,
    CloudMismatchError,
    CloudOverloadedError,
    CloudStorageError,
    CloudUnavailableError,
    RequestError,
)
from delta.wire.training import CreateDatasetResponse, UploadReleasesRequest, UploadReleasesResponse
from tests.scripted_training import (
    GARBAGE,
    METHODS,
    RELEASES,
    STREAMS_DOWN,
    STREAMS_UP,
    Cloud,
    aborted,
    calls_of,
    drained,
    one_line,
    session_of,
    streamed,
)
from tests.training_jobs import DATASET, HELD_OUT, JOB, RECORDS, chunks_of, dataset_spec, job_spec

# Every call


@pytest.mark.parametrize("method", METHODS)
def test_garbage_is_a_bad_answer(method):
    script = streamed(GARBAGE) if method in STREAMS_DOWN else lambda given, context: GARBAGE
    with Cloud(**{method: script}) as cloud, session_of(cloud) as session:
        if method != "CreateDataset":
            session.create(DATASET, dataset_spec())
        with pytest.raises(CloudAnswerError) as caught:
            calls_of(session)[method]()
        assert one_line(caught)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "error",
    [
        CloudDeniedError("no such data set"),
        CloudStorageError("no room"),
        CloudMismatchError("another specification"),
        RequestError("a gap"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_refusal_arrives_as_it_was_meant_and_is_not_tried_again(method, error):
    with Cloud(**{method: aborted(error)}) as cloud, session_of(cloud) as session:
        if method != "CreateDataset":
            session.create(DATASET, dataset_spec())
        with pytest.raises(type(error), match=str(error)):
            calls_of(session)[method]()
        if method not in STREAMS_UP:
            assert len(cloud.received[method]) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_text_that_is_no_line_is_made_one(method):
    script = aborted(CloudOverloadedError("full\n\x1b[2J" + "y" * 3000))
    with Cloud(**{method: script}) as cloud, session_of(cloud) as session:
        if method != "CreateDataset":
            session.create(DATASET, dataset_spec())
        with pytest.raises(CloudOverloadedError) as caught:
            calls_of(session)[method]()
        assert one_line(caught)


@pytest.mark.parametrize("method", METHODS)
def test_a_cloud_that_hangs_is_waited_for_so_long_and_no_longer(method):
    def hang(given, context):
        cloud.release.wait(30)
        return iter(()) if method in STREAMS_DOWN else b""

    with Cloud(**{method: hang}) as cloud, session_of(cloud, timeout_s=0.3, pauses_s=(0.0,)) as session:
        if method != "CreateDataset":
            session.create(DATASET, dataset_spec())
        with pytest.raises(CloudDeadlineError) as caught:
            calls_of(session)[method]()
        assert one_line(caught)
        cloud.release.set()


@pytest.mark.parametrize("method", METHODS)
def test_nobody_there_is_said_in_one_line(method):
    with Cloud() as cloud, session_of(cloud) as session:
        session.create(DATASET, dataset_spec())
        cloud.server.stop(None).wait()
        with pytest.raises(CloudUnavailableError) as caught:
            calls_of(session)[method]()
        assert cloud.address in str(caught.value)
        assert one_line(caught)


def test_a_cloud_that_does_not_train_says_how_it_would():
    with Cloud() as cloud, session_of(cloud) as session:
        with pytest.raises(CloudMismatchError, match="--training"):
            session.start(DATASET, JOB, job_spec())


def test_what_was_not_created_here_is_denied_without_a_call():
    with Cloud() as cloud, session_of(cloud) as session:
        for call in (
            lambda: session.upload(DATASET, chunks_of(RELEASES)),
            lambda: session.held_out_logits(DATASET, JOB, records=HELD_OUT),
            lambda: session.interact(DATASET, JOB, job_spec(steps=3)),
        ):
            with pytest.raises(CloudDeniedError, match="create it first"):
                call()
        assert not any(cloud.received.values())
        assert (session.bytes_up, session.bytes_down) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_closed_connection_takes_nothing(method):
    with Cloud() as cloud:
        session = session_of(cloud)
        session.create(DATASET, dataset_spec())
        session.close()
        session.close()
        with pytest.raises(CloudUnavailableError) as caught:
            calls_of(session)[method]()
        assert one_line(caught)


# Create and upload


@pytest.mark.parametrize(
    "answer",
    [
        CreateDatasetResponse(acknowledged=RECORDS + 1, max_records=16),
        CreateDatasetResponse(acknowledged=2**64 - 1, max_records=16),
        CreateDatasetResponse(acknowledged=0, max_records=0),
    ],
    ids=["more", "most", "none"],
)
def test_a_count_that_cannot_be_is_a_bad_answer(answer):
    with Cloud(CreateDataset=lambda raw, context: answer) as cloud, session_of(cloud) as session:
        with pytest.raises(CloudAnswerError):
            session.create(DATASET, dataset_spec())


@pytest.mark.parametrize(("stop", "acknowledged"), [(16, 17), (16, RECORDS), (RECORDS, RECORDS + 1), (0, 1)])
def test_more_than_was_sent_cannot_be_stored(stop, acknowledged):
    with Cloud(UploadReleases=drained(acknowledged)) as cloud, session_of(cloud) as session:
        session.create(DATASET, dataset_spec())
        with pytest.raises(CloudAnswerError, match="stored"):
            session.upload(DATASET, chunks_of(RELEASES, stop=stop))


def test_less_than_was_sent_is_told_and_nothing_is_sent_again():
    with Cloud(UploadReleases=drained(5)) as cloud, session_of(cloud) as session:
        session.create(DATASET, dataset_spec())
        assert session.upload(DATASET, chunks_of(RELEASES)) == 5
        assert len(cloud.received["UploadReleases"]) == 1 + -(-RECORDS // 16)


def test_messages_are_as_small_as_the_cloud_says():
    created = CreateDatasetResponse(acknowledged=0, max_records=7)
    with (
        Cloud(CreateDataset=lambda raw, context: created, UploadReleases=drained(RECORDS)) as cloud,
        session_of(cloud) as session,
    ):
        session.create(DATASET, dataset_spec())
        session.upload(DATASET, chunks_of(RELEASES))
        head, *parts = map(UploadReleasesRequest.FromString, cloud.received["UploadReleases"])
        assert head.head.dataset == DATASET
        assert not head.count
        assert max(part.count for part in parts) == 7
        assert [part.first for part in parts] == list(
            itertools.accumulate((part.count for part in parts[:-1]), initial=0)
        )
        assert b"".join(part.bits for part in parts) == RELEASES.bits.numpy().tobytes()


def test_an_upload_that_is_answered_early_stops():
    """The cloud takes two messages and answers: the rest is not even drawn."""
    taken = []

    def chunks():
        for i in range(3000):
            taken.append(i)
            yield from chunks_of(RELEASES, stop=16)

    def script(raws, context):
        next(raws), next(raws)
        return UploadReleasesResponse(acknowledged=16)

    with Cloud(UploadReleases=script) as cloud, session_of(cloud) as session:
        session.create(DATASET, dataset_spec())
        assert session.upload(DATASET, chunks()) == 16
        assert len(taken) < 3000


def test_an_upload_that_nobody_takes_holds_little_and_ends():
    """Flow control: a cloud that reads nothing is sent a bounded number of bytes."""
    taken = []
    spec = dataset_spec(records=10_000_000)

    def chunks():
        bits = RELEASES.bits[:1].expand(1000, -1).contiguous()
        labels, held_out = torch.zeros(1000, dtype=torch.int64), torch.zeros(1000, dtype=torch.bool)
        for i in range(10_000):
            taken.append(i)
            yield from chunks_of(type(RELEASES)(bits, labels, held_out), stop=1000)

    def hang(raws, context):
        cloud.release.wait(30)
        return UploadReleasesResponse()

    with Cloud(UploadReleases=hang) as cloud, session_of(cloud, timeout_s=0.5) as session:
        session.create(DATASET, spec)
        with pytest.raises(CloudDeadlineError):
            session.upload(DATASET, chunks())
        assert len(taken) < 2000
        cloud.release.set()


def test_a_cut_upload_is_unavailable():
    def cut(raws, context):
        next(raws)
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    with Cloud(UploadReleases=cut) as cloud, session_of(cloud) as session:
        session.create(DATASET, dataset_spec())
        with pytest.raises(CloudUnavailableError) as caught:
            session.upload(DATASET, chunks_of(RELEASES))
        assert one_line(caught)
