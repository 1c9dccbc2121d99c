# ruff: noqa: SIM117 - a session inside a cloud, and what it must raise inside both, read best nested
"""Training clouds that break the rules: one clear error in time, and nothing more is sent because of it."""

from __future__ import annotations

import hashlib
import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch
from delta_client import GrpcTrainingCloud

from delta.bundle.store import serialise_weights
from delta.errors import (
    CloudAnswerError,
    CloudDeadlineError,
    CloudDeniedError,
    CloudError,
    CloudMismatchError,
    CloudOverloadedError,
    CloudStorageError,
    CloudUnavailableError,
    RequestError,
)
from delta.wire.status import Failure, status_of
from delta.wire.training import (
    TRAINING_SERVICE,
    CreateDatasetResponse,
    DeleteDatasetResponse,
    FetchCheckpointResponse,
    FetchLogitsResponse,
    TrainInteractivelyRequest,
    TrainInteractivelyResponse,
    UploadReleasesRequest,
    UploadReleasesResponse,
    WatchTrainingResponse,
    checkpoint_messages,
    token_of,
)
from tests.training_jobs import (
    CLASSES,
    DATASET,
    JOB,
    RECORDS,
    chunks_of,
    dataset_spec,
    job_spec,
    manifest_of,
    stored_releases,
)

TOKEN = bytes(range(32))
RELEASES = stored_releases()
STREAMS_UP = {"UploadReleases", "TrainInteractively"}
STREAMS_DOWN = {"WatchTraining", "FetchLogits", "FetchCheckpoint", "TrainInteractively"}
METHODS = [
    "CreateDataset",
    "UploadReleases",
    "DeleteDataset",
    "StartTraining",
    "WatchTraining",
    "CancelTraining",
    "FetchLogits",
    "FetchCheckpoint",
    "PromoteCheckpoint",
    "TrainInteractively",
]
GARBAGE = b"\xff\xff\xff\xff no message"
RUNNING = WatchTrainingResponse(state=2, step=1, steps=10)
DONE = WatchTrainingResponse(state=3, step=10, steps=10)


def _raw(message):
    return message if isinstance(message, bytes) else message.SerializeToString()


class Cloud:
    """A server whose methods follow scripts: `script(request or requests, context)` → an answer or answers.

    Attributes:
        received: raw messages, by method.
        release: set at the end, for scripts that hang.
        ended: set when a streaming script was left.
    """

    def __init__(self, **scripts):
        self.scripts = {
            "CreateDataset": lambda raw, context: CreateDatasetResponse(acknowledged=0, max_records=1024),
            **scripts,
        }
        self.received = {method: [] for method in METHODS}
        self.release = threading.Event()
        self.ended = threading.Event()

    def __enter__(self):
        self.server = grpc.server(ThreadPoolExecutor(8))
        handlers = {method: self._handler(method) for method in self.scripts}
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(TRAINING_SERVICE, handlers),)
        )
        self.address = "127.0.0.1:{}".format(self.server.add_insecure_port("127.0.0.1:0"))
        self.server.start()
        return self

    def __exit__(self, *_):
        self.release.set()
        self.server.stop(None).wait()

    def _handler(self, method):
        script = self.scripts[method]

        def noted(raws):
            for raw in raws:
                self.received[method].append(raw)
                yield raw

        def seen(given, context):
            token_of(context.invocation_metadata())
            if method in STREAMS_UP:
                return noted(given)
            self.received[method].append(given)
            return given

        def one(given, context):
            return _raw(script(seen(given, context), context))

        def many(given, context):
            try:
                for message in script(seen(given, context), context):
                    yield _raw(message)
            finally:
                self.ended.set()

        up, down = method in STREAMS_UP, method in STREAMS_DOWN
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[up, down]
        return make(many if down else one)


def _session(cloud, **options):
    options = {"timeout_s": 10.0, "pauses_s": (0.0, 0.0), **options}
    return GrpcTrainingCloud(cloud.address, TOKEN, **options)


def _abort(error):
    """A script that fails as a server of ours would."""

    def script(given, context):
        code, text, metadata = status_of(error)
        context.set_trailing_metadata(metadata)
        context.abort(code, text)

    return script


def _streamed(*messages):
    return lambda given, context: iter(messages)


def _calls(cloud):
    """Every call of the contract, by the method that it makes."""
    manifest = manifest_of(dataset_spec(), job_spec(), weights_hash="0" * 64)
    return {
        "CreateDataset": lambda: cloud.create(DATASET, dataset_spec()),
        "UploadReleases": lambda: cloud.upload(DATASET, chunks_of(RELEASES)),
        "DeleteDataset": lambda: cloud.delete(DATASET),
        "StartTraining": lambda: cloud.start(DATASET, JOB, job_spec()),
        "WatchTraining": lambda: list(cloud.watch(DATASET, JOB)),
        "CancelTraining": lambda: cloud.cancel(DATASET, JOB),
        "FetchLogits": lambda: cloud.held_out_logits(DATASET, JOB),
        "FetchCheckpoint": lambda: cloud.fetch(DATASET, JOB),
        "PromoteCheckpoint": lambda: cloud.promote(DATASET, JOB, manifest),
        "TrainInteractively": lambda: cloud.interact(DATASET, JOB, job_spec(steps=3)),
    }


def _one_line(caught):
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    return True


# Every call


@pytest.mark.parametrize("method", METHODS)
def test_garbage_is_a_bad_answer(method):
    script = _streamed(GARBAGE) if method in STREAMS_DOWN else lambda given, context: GARBAGE
    with Cloud(**{method: script}) as cloud, _session(cloud) as session:
        if method != "CreateDataset":
            session.create(DATASET, dataset_spec())
        with pytest.raises(CloudAnswerError) as caught:
            _calls(session)[method]()
        assert _one_line(caught)


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
    with Cloud(**{method: _abort(error)}) as cloud, _session(cloud) as session:
        if method != "CreateDataset":
            session.create(DATASET, dataset_spec())
        with pytest.raises(type(error), match=str(error)):
            _calls(session)[method]()
        if method not in STREAMS_UP:
            assert len(cloud.received[method]) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_text_that_is_no_line_is_made_one(method):
    script = _abort(CloudOverloadedError("full\n\x1b[2J" + "y" * 3000))
    with Cloud(**{method: script}) as cloud, _session(cloud) as session:
        if method != "CreateDataset":
            session.create(DATASET, dataset_spec())
        with pytest.raises(CloudOverloadedError) as caught:
            _calls(session)[method]()
        assert _one_line(caught)


@pytest.mark.parametrize("method", METHODS)
def test_a_cloud_that_hangs_is_waited_for_so_long_and_no_longer(method):
    def hang(given, context):
        cloud.release.wait(30)
        return iter(()) if method in STREAMS_DOWN else b""

    with Cloud(**{method: hang}) as cloud, _session(cloud, timeout_s=0.3, pauses_s=(0.0,)) as session:
        if method != "CreateDataset":
            session.create(DATASET, dataset_spec())
        with pytest.raises(CloudDeadlineError) as caught:
            _calls(session)[method]()
        assert _one_line(caught)
        cloud.release.set()


@pytest.mark.parametrize("method", METHODS)
def test_nobody_there_is_said_in_one_line(method):
    with Cloud() as cloud, _session(cloud) as session:
        session.create(DATASET, dataset_spec())
        cloud.server.stop(None).wait()
        with pytest.raises(CloudUnavailableError) as caught:
            _calls(session)[method]()
        assert cloud.address in str(caught.value)
        assert _one_line(caught)


def test_a_cloud_that_does_not_train_says_how_it_would():
    with Cloud() as cloud, _session(cloud) as session:
        with pytest.raises(CloudMismatchError, match="--training"):
            session.start(DATASET, JOB, job_spec())


def test_what_was_not_created_here_is_denied_without_a_call():
    with Cloud() as cloud, _session(cloud) as session:
        for call in (
            lambda: session.upload(DATASET, chunks_of(RELEASES)),
            lambda: session.held_out_logits(DATASET, JOB),
            lambda: session.interact(DATASET, JOB, job_spec(steps=3)),
        ):
            with pytest.raises(CloudDeniedError, match="create it first"):
                call()
        assert not any(cloud.received.values())
        assert (session.bytes_up, session.bytes_down) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_closed_connection_takes_nothing(method):
    with Cloud() as cloud:
        session = _session(cloud)
        session.create(DATASET, dataset_spec())
        session.close()
        session.close()
        with pytest.raises(CloudUnavailableError) as caught:
            _calls(session)[method]()
        assert _one_line(caught)


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
    with Cloud(CreateDataset=lambda raw, context: answer) as cloud, _session(cloud) as session:
        with pytest.raises(CloudAnswerError):
            session.create(DATASET, dataset_spec())


def _drained(acknowledged):
    def script(raws, context):
        for _ in raws:
            pass
        return UploadReleasesResponse(acknowledged=acknowledged)

    return script


@pytest.mark.parametrize(("stop", "acknowledged"), [(16, 17), (16, RECORDS), (RECORDS, RECORDS + 1), (0, 1)])
def test_more_than_was_sent_cannot_be_stored(stop, acknowledged):
    with Cloud(UploadReleases=_drained(acknowledged)) as cloud, _session(cloud) as session:
        session.create(DATASET, dataset_spec())
        with pytest.raises(CloudAnswerError, match="stored"):
            session.upload(DATASET, chunks_of(RELEASES, stop=stop))


def test_less_than_was_sent_is_told_and_nothing_is_sent_again():
    with Cloud(UploadReleases=_drained(5)) as cloud, _session(cloud) as session:
        session.create(DATASET, dataset_spec())
        assert session.upload(DATASET, chunks_of(RELEASES)) == 5
        assert len(cloud.received["UploadReleases"]) == 1 + -(-RECORDS // 16)


def test_messages_are_as_small_as_the_cloud_says():
    created = CreateDatasetResponse(acknowledged=0, max_records=7)
    with (
        Cloud(CreateDataset=lambda raw, context: created, UploadReleases=_drained(RECORDS)) as cloud,
        _session(cloud) as session,
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

    with Cloud(UploadReleases=script) as cloud, _session(cloud) as session:
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

    with Cloud(UploadReleases=hang) as cloud, _session(cloud, timeout_s=0.5) as session:
        session.create(DATASET, spec)
        with pytest.raises(CloudDeadlineError):
            session.upload(DATASET, chunks())
        assert len(taken) < 2000
        cloud.release.set()


def test_a_cut_upload_is_unavailable():
    def cut(raws, context):
        next(raws)
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    with Cloud(UploadReleases=cut) as cloud, _session(cloud) as session:
        session.create(DATASET, dataset_spec())
        with pytest.raises(CloudUnavailableError) as caught:
            session.upload(DATASET, chunks_of(RELEASES))
        assert _one_line(caught)


# Watch


def test_an_endless_watch_is_left_when_the_caller_leaves():
    with (
        Cloud(WatchTraining=lambda raw, context: itertools.repeat(RUNNING)) as cloud,
        _session(cloud) as session,
    ):
        states = session.watch(DATASET, JOB)
        assert len(list(itertools.islice(states, 1000))) == 1000
        states.close()
        assert cloud.ended.wait(10)
        assert len(cloud.received["WatchTraining"]) == 1


def test_a_watch_that_is_cut_goes_on():
    attempts = itertools.count()

    def script(raw, context):
        yield WatchTrainingResponse(state=2, step=next(attempts), steps=10)
        if next(attempts) < 4:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        yield DONE

    with Cloud(WatchTraining=script) as cloud, _session(cloud, pauses_s=(0.0,)) as session:
        states = list(session.watch(DATASET, JOB))
        assert states[-1].state == "done"
        assert len(cloud.received["WatchTraining"]) == 3


@pytest.mark.parametrize("last", ["cut", "ended"])
def test_a_watch_that_is_cut_again_and_again_without_a_step_ends(last):
    def script(raw, context):
        yield RUNNING
        if last == "cut":
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    with Cloud(WatchTraining=script) as cloud, _session(cloud) as session:
        with pytest.raises(CloudUnavailableError) as caught:
            list(session.watch(DATASET, JOB))
        assert _one_line(caught)
        assert len(cloud.received["WatchTraining"]) == 3


@pytest.mark.parametrize("number", [0, 6, 99])
def test_an_unknown_state_is_a_bad_answer(number):
    with (
        Cloud(WatchTraining=_streamed(RUNNING, WatchTrainingResponse(state=number))) as cloud,
        _session(cloud) as session,
    ):
        with pytest.raises(CloudAnswerError, match="state number"):
            list(session.watch(DATASET, JOB))
        assert len(cloud.received["WatchTraining"]) == 1


def test_nothing_is_read_behind_the_final_state():
    with Cloud(WatchTraining=_streamed(DONE, GARBAGE)) as cloud, _session(cloud) as session:
        assert [state.state for state in session.watch(DATASET, JOB)] == ["done"]


def test_a_state_is_made_fit_to_print():
    failed = WatchTrainingResponse(state=4, loss=math.nan, message="a\nb\x07" + "z" * 5000)
    with Cloud(WatchTraining=_streamed(failed)) as cloud, _session(cloud) as session:
        (state,) = session.watch(DATASET, JOB)
        assert state.loss is None
        assert state.message.isprintable()
        assert len(state.message) <= 300


# Logits


def _rows(n, classes=CLASSES):
    return FetchLogitsResponse(logits=bytes(4 * classes * n))


@pytest.mark.parametrize(
    "messages",
    [
        [FetchLogitsResponse(logits=bytes(4 * CLASSES - 1))],
        [_rows(1), FetchLogitsResponse(logits=bytes(4))],
        [_rows(RECORDS + 1)],
        [_rows(RECORDS), FetchLogitsResponse(logits=b"x")],
        [FetchLogitsResponse()],
    ],
    ids=["part of a row", "a rest", "too many", "one byte too many", "empty"],
)
def test_logits_that_are_no_rows_are_a_bad_answer(messages):
    with Cloud(FetchLogits=_streamed(*messages)) as cloud, _session(cloud) as session:
        session.create(DATASET, dataset_spec())
        with pytest.raises(CloudAnswerError) as caught:
            session.held_out_logits(DATASET, JOB)
        assert _one_line(caught)


@pytest.mark.parametrize("message", [_rows(1), FetchLogitsResponse()], ids=["rows", "nothing"])
def test_endless_logits_end(message):
    with (
        Cloud(FetchLogits=lambda raw, context: itertools.repeat(message)) as cloud,
        _session(cloud) as session,
    ):
        session.create(DATASET, dataset_spec())
        with pytest.raises(CloudAnswerError):
            session.held_out_logits(DATASET, JOB)
        assert cloud.ended.wait(10)


def test_logits_that_are_not_finite_are_the_callers_to_judge():
    rows = torch.full((2, CLASSES), torch.nan)
    with (
        Cloud(FetchLogits=_streamed(FetchLogitsResponse(logits=rows.numpy().tobytes()))) as cloud,
        _session(cloud) as session,
    ):
        session.create(DATASET, dataset_spec())
        assert session.held_out_logits(DATASET, JOB).isnan().all()


# Weights

WEIGHTS = serialise_weights({"w": torch.arange(1000.0)})
SHA = hashlib.sha256(WEIGHTS).hexdigest()


def _weights(*, data=WEIGHTS, sha256=None, size=None):
    return FetchCheckpointResponse(
        data=data,
        sha256=hashlib.sha256(data).hexdigest() if sha256 is None else sha256,
        size=len(data) if size is None else size,
    )


def test_honest_weights_are_taken():
    with Cloud(FetchCheckpoint=lambda raw, context: checkpoint_messages(WEIGHTS)) as cloud:
        with _session(cloud) as session:
            assert torch.equal(session.fetch(DATASET, JOB)["w"], torch.arange(1000.0))


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [FetchCheckpointResponse()],
        [_weights(sha256="0" * 64)],
        [_weights(sha256="")],
        [_weights(sha256="x" * 100_000)],
        [_weights(sha256=SHA.upper())],
        [_weights(size=0)],
        [_weights(size=len(WEIGHTS) - 1)],
        [_weights(size=len(WEIGHTS) + 1)],
        [_weights(size=2**63)],
        [_weights(), FetchCheckpointResponse(data=b"more")],
        [_weights(), FetchCheckpointResponse()],
        [_weights(data=b"\x80\x04N.")],
        [_weights(data=WEIGHTS[:-8])],
        [_weights(data=(2**62).to_bytes(8, "little") + WEIGHTS[8:])],
    ],
    ids=range(15),
)
def test_weights_that_are_not_what_was_declared_are_a_bad_answer(messages):
    with Cloud(FetchCheckpoint=_streamed(*messages)) as cloud, _session(cloud) as session:
        with pytest.raises(CloudAnswerError) as caught:
            session.fetch(DATASET, JOB)
        assert _one_line(caught)
        assert len(cloud.received["FetchCheckpoint"]) == 1


def test_weights_above_the_limit_are_not_even_begun():
    with (
        Cloud(FetchCheckpoint=lambda raw, context: checkpoint_messages(WEIGHTS)) as cloud,
        _session(cloud, max_checkpoint_bytes=len(WEIGHTS) - 1) as session,
    ):
        with pytest.raises(CloudAnswerError, match="at most"):
            session.fetch(DATASET, JOB)


def test_endless_weights_end():
    def script(raw, context):
        yield _weights(size=2**30)
        yield from itertools.repeat(FetchCheckpointResponse())

    with Cloud(FetchCheckpoint=script) as cloud, _session(cloud) as session:
        with pytest.raises(CloudAnswerError):
            session.fetch(DATASET, JOB)
        assert cloud.ended.wait(10)


def test_a_message_above_the_limit_is_not_taken():
    with (
        Cloud(FetchCheckpoint=_streamed(_weights(data=bytes(2_000_000)))) as cloud,
        _session(cloud, max_answer_bytes=1_000_000) as session,
    ):
        with pytest.raises(CloudError) as caught:
            session.fetch(DATASET, JOB)
        assert _one_line(caught)


# Interactive

READY = TrainInteractivelyResponse(ready=True)
LABELS = RELEASES.labels[:8]
BITS = RELEASES.bits[:8]


def _answers(*answers):
    """One answer a batch, after an honest greeting."""

    def script(raws, context):
        next(raws)
        yield READY
        for answer, _ in zip(answers, raws, strict=False):
            if isinstance(answer, Exception):
                context.abort(*status_of(answer)[:2])
            yield answer

    return script


def _logits(n=8):
    return TrainInteractivelyResponse(logits=bytes(4 * CLASSES * n))


def _interact(session, **options):
    session.create(DATASET, dataset_spec())
    return session.interact(DATASET, JOB, job_spec(steps=3), **options)


def _exchange(running):
    return running.exchange(BITS, LABELS, update=True)


@pytest.mark.parametrize(
    "answer",
    [
        TrainInteractivelyResponse(),
        _logits(7),
        _logits(9),
        TrainInteractivelyResponse(logits=bytes(4 * CLASSES * 8 - 1)),
        READY,
        GARBAGE,
    ],
    ids=["empty", "one row less", "one row more", "a byte less", "greets again", "garbage"],
)
def test_a_wrong_answer_ends_the_session_and_no_further_batch_is_sent(answer):
    with Cloud(TrainInteractively=_answers(answer, _logits())) as cloud, _session(cloud) as session:
        with _interact(session) as running:
            for _ in range(2):
                with pytest.raises(CloudAnswerError) as caught:
                    _exchange(running)
                assert _one_line(caught)
        assert cloud.ended.wait(10)
        assert len(cloud.received["TrainInteractively"]) == 2


def test_an_answer_that_is_not_finite_is_the_callers_to_judge():
    nan = TrainInteractivelyResponse(logits=torch.full((8, CLASSES), torch.nan).numpy().tobytes())
    with Cloud(TrainInteractively=_answers(nan)) as cloud, _session(cloud) as session:
        with _interact(session) as running:
            assert _exchange(running).isnan().all()


def test_a_refused_batch_leaves_the_session_as_it_is():
    refusal = TrainInteractivelyResponse(failure=Failure(code="request", message="too\nfew"))
    with Cloud(TrainInteractively=_answers(refusal, _logits())) as cloud, _session(cloud) as session:
        with _interact(session) as running:
            with pytest.raises(RequestError, match="too few"):
                _exchange(running)
            assert _exchange(running).shape == (8, CLASSES)


def test_a_cloud_cannot_choose_an_error_of_the_private_side():
    refusal = TrainInteractivelyResponse(failure=Failure(code="budget", message="spent"))
    with Cloud(TrainInteractively=_answers(refusal)) as cloud, _session(cloud) as session:
        with _interact(session) as running, pytest.raises(CloudError):
            _exchange(running)


@pytest.mark.parametrize(
    "greeting", [TrainInteractivelyResponse(), _logits(), None], ids=["", "logits", "none"]
)
def test_a_job_without_a_greeting_does_not_begin(greeting):
    script = _streamed(*([] if greeting is None else [greeting]))
    with Cloud(TrainInteractively=script) as cloud, _session(cloud) as session:
        with pytest.raises((CloudAnswerError, CloudUnavailableError)):
            _interact(session)
        assert cloud.ended.wait(10)
        assert len(cloud.received["TrainInteractively"]) <= 1


@pytest.mark.parametrize("how", ["cut", "ended"])
def test_a_cut_session_is_unavailable_and_stays_so(how):
    rest = [CloudUnavailableError("gone")] if how == "cut" else []
    with Cloud(TrainInteractively=_answers(_logits(), *rest)) as cloud, _session(cloud) as session:
        with _interact(session) as running:
            _exchange(running)
            for _ in range(2):
                with pytest.raises(CloudUnavailableError) as caught:
                    _exchange(running)
                assert _one_line(caught)


def test_an_answer_that_was_not_asked_for_is_found_at_the_end():
    def script(raws, context):
        next(raws)
        yield READY
        for _ in raws:
            yield _logits()
        yield _logits()

    with Cloud(TrainInteractively=script) as cloud, _session(cloud) as session:
        with pytest.raises(CloudAnswerError, match="never sent"), _interact(session) as running:
            _exchange(running)


def test_no_label_leaves_without_an_update():
    with Cloud(TrainInteractively=_answers(_logits(), _logits())) as cloud, _session(cloud) as session:
        with _interact(session) as running:
            running.exchange(BITS, LABELS, update=False)
            running.exchange(BITS, LABELS, update=True)
        _, quiet, told = map(TrainInteractivelyRequest.FromString, cloud.received["TrainInteractively"])
        assert (quiet.labels, quiet.update) == (b"", False)
        assert told.labels


# What is sent does not depend on what is answered


def test_the_same_messages_go_to_an_honest_and_to_a_hostile_cloud():
    """An upload and three batches, whatever the answers say of their content."""
    rows = torch.randn(8, CLASSES, generator=torch.Generator().manual_seed(0))
    sent = []
    for change in (1.0, -1e30, torch.nan, torch.inf):
        answer = TrainInteractivelyResponse(logits=(rows * change).numpy().tobytes(), cloud_ms=math.nan)
        scripts = {
            "UploadReleases": _drained(RECORDS),
            "TrainInteractively": _answers(answer, answer, answer),
            "DeleteDataset": lambda raw, context: DeleteDatasetResponse(),
        }
        with Cloud(**scripts) as cloud, _session(cloud) as session:
            session.create(DATASET, dataset_spec())
            session.upload(DATASET, chunks_of(RELEASES))
            with _interact(session) as running:
                for _ in range(3):
                    _exchange(running)
            session.delete(DATASET)
            sent.append((cloud.received, session.bytes_up))
    assert all(other == sent[0] for other in sent)
    assert sent[0][1] == sum(len(raw) for raws in sent[0][0].values() for raw in raws)
