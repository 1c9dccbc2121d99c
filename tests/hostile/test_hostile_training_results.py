# ruff: noqa: SIM117 - a session inside a cloud, and what it must raise inside both, read best nested
"""Training clouds that lie about how far a job is and what came of it, or never come to an end."""

from __future__ import annotations

import hashlib
import itertools
import json
import math

import grpc
import pytest
import torch

from delta.bundle.store import serialise_weights
from delta.errors import CloudAnswerError, CloudDeadlineError, CloudError, CloudUnavailableError
from delta.wire.training import (
    FetchCheckpointResponse,
    FetchLogitsResponse,
    WatchTrainingResponse,
    checkpoint_messages,
)
from tests.scripted_training import (
    BLANK,
    DONE,
    GARBAGE,
    RUNNING,
    Cloud,
    calls_of,
    one_line,
    session_of,
    streamed,
)
from tests.training_jobs import CLASSES, DATASET, HELD_OUT, JOB, RECORDS, dataset_spec

# Watch


def test_an_endless_watch_is_left_when_the_caller_leaves():
    with (
        Cloud(WatchTraining=lambda raw, context: itertools.repeat(RUNNING)) as cloud,
        session_of(cloud) as session,
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

    with Cloud(WatchTraining=script) as cloud, session_of(cloud, pauses_s=(0.0,)) as session:
        states = list(session.watch(DATASET, JOB))
        assert states[-1].state == "done"
        assert len(cloud.received["WatchTraining"]) == 3


@pytest.mark.parametrize("last", ["cut", "ended"])
def test_a_watch_that_is_cut_again_and_again_without_a_step_ends(last):
    def script(raw, context):
        yield RUNNING
        if last == "cut":
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    with Cloud(WatchTraining=script) as cloud, session_of(cloud) as session:
        with pytest.raises(CloudUnavailableError) as caught:
            list(session.watch(DATASET, JOB))
        assert one_line(caught)
        assert len(cloud.received["WatchTraining"]) == 3


@pytest.mark.parametrize("number", [0, 6, 99])
def test_an_unknown_state_is_a_bad_answer(number):
    with (
        Cloud(WatchTraining=streamed(RUNNING, WatchTrainingResponse(state=number))) as cloud,
        session_of(cloud) as session,
    ):
        with pytest.raises(CloudAnswerError, match="state number"):
            list(session.watch(DATASET, JOB))
        assert len(cloud.received["WatchTraining"]) == 1


def test_nothing_is_read_behind_the_final_state():
    with Cloud(WatchTraining=streamed(DONE, GARBAGE)) as cloud, session_of(cloud) as session:
        assert [state.state for state in session.watch(DATASET, JOB)] == ["done"]


def test_a_state_is_made_fit_to_print():
    failed = WatchTrainingResponse(state=4, loss=math.nan, message="a\nb\x07" + "z" * 5000)
    with Cloud(WatchTraining=streamed(failed)) as cloud, session_of(cloud) as session:
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
        [_rows(HELD_OUT - 1)],
        [_rows(HELD_OUT + 1)],
        [_rows(RECORDS)],
        [_rows(HELD_OUT), FetchLogitsResponse(logits=b"x")],
        [FetchLogitsResponse()],
        [],
    ],
    ids=["part of a row", "a rest", "too few", "too many", "all", "one byte too many", "empty", "none"],
)
def test_logits_that_are_not_the_rows_of_held_out_records_are_a_bad_answer(messages):
    with Cloud(FetchLogits=streamed(*messages)) as cloud, session_of(cloud) as session:
        session.create(DATASET, dataset_spec())
        with pytest.raises(CloudAnswerError) as caught:
            session.held_out_logits(DATASET, JOB, records=HELD_OUT)
        assert one_line(caught)


@pytest.mark.parametrize("message", [_rows(1), FetchLogitsResponse()], ids=["rows", "nothing"])
def test_endless_logits_end(message):
    with (
        Cloud(FetchLogits=lambda raw, context: itertools.repeat(message)) as cloud,
        session_of(cloud) as session,
    ):
        session.create(DATASET, dataset_spec())
        with pytest.raises(CloudAnswerError):
            session.held_out_logits(DATASET, JOB, records=HELD_OUT)
        assert cloud.ended.wait(10)


def test_logits_that_are_not_finite_are_the_callers_to_judge():
    rows = torch.full((HELD_OUT, CLASSES), torch.nan)
    with (
        Cloud(FetchLogits=streamed(FetchLogitsResponse(logits=rows.numpy().tobytes()))) as cloud,
        session_of(cloud) as session,
    ):
        session.create(DATASET, dataset_spec())
        assert session.held_out_logits(DATASET, JOB, records=HELD_OUT).isnan().all()


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
        with session_of(cloud) as session:
            assert torch.equal(session.fetch(DATASET, JOB, like=BLANK)["w"], torch.arange(1000.0))


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
        [_weights(data=b"")],
    ],
    ids=range(16),
)
def test_weights_that_are_not_what_was_declared_are_a_bad_answer(messages):
    with Cloud(FetchCheckpoint=streamed(*messages)) as cloud, session_of(cloud) as session:
        with pytest.raises(CloudAnswerError) as caught:
            session.fetch(DATASET, JOB, like=BLANK)
        assert one_line(caught)
        assert len(cloud.received["FetchCheckpoint"]) == 1


W = {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}
"""The one honest entry of a header."""


def _text(**entries):
    return json.dumps(entries)


@pytest.mark.parametrize(
    "header",
    [
        _text(),
        _text(w=W, x={**W, "shape": [0], "data_offsets": [4000, 4000]}),
        _text(v=W),
        _text(w={**W, "shape": [10, 100]}),
        _text(w={**W, "shape": [1000, 1]}),
        _text(w={**W, "dtype": "I32"}),
        _text(w={**W, "dtype": "F4"}),
        _text(w={**W, "shape": [0, 2**63]}),
        _text(w={**W, "shape": [0, 2**62, 2**62]}),
        _text(w={**W, "shape": "1000"}),
        _text(w={**W, "data_offsets": [4000, 8000]}),
        _text(w={**W, "data_offsets": [0, 2**63]}),
        _text(w={**W, "data_offsets": [0, 2**64]}),
        _text(w={**W, "data_offsets": None}),
        _text(w={"dtype": "F32", "shape": [1000]}),
        _text(w=[1, 2]),
        _text(w=W, __metadata__={"a": 1}),
        _text(w=W)[:-1] + ', "w": ' + json.dumps({**W, "shape": [10, 100]}) + "}",
        '{"w": ' + json.dumps({**W, "shape": [0, 2**63]}) + ", " + _text(w=W)[1:],
        '{"w": ' + json.dumps({**W, "shape": [0, 2**62, 2**62]}) + ", " + _text(w=W)[1:],
        "[" * 60_000,
        '{"w": {"shape": [' + "9" * 50_000 + "]}}",
        "[1]",
        "null",
        '{"w": NaN}',
        "{" + ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(1000)) + "}",
        "\x00",
    ],
    ids=range(27),
)
def test_a_header_of_other_weights_is_a_bad_answer(header):
    data = len(header).to_bytes(8, "little") + header.encode() + bytes(4000)
    with Cloud(FetchCheckpoint=streamed(_weights(data=data))) as cloud, session_of(cloud) as session:
        with pytest.raises(CloudAnswerError) as caught:
            session.fetch(DATASET, JOB, like=BLANK)
        assert one_line(caught)


def test_a_header_that_is_written_otherwise_is_taken():
    header = _text(__metadata__={"format": "pt", "more": "x" * 60_000}, w=W)
    data = len(header).to_bytes(8, "little") + header.encode() + WEIGHTS[-4000:]
    with Cloud(FetchCheckpoint=streamed(_weights(data=data))) as cloud, session_of(cloud) as session:
        assert torch.equal(session.fetch(DATASET, JOB, like=BLANK)["w"], torch.arange(1000.0))


def test_every_type_that_a_model_may_have_is_taken():
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool)
    like = {f"layer.{i}": torch.ones(2, i, 3, dtype=kind) for i, kind in enumerate(kinds)}
    like |= {"count": torch.tensor(3), "none": torch.empty(0)}
    messages = checkpoint_messages(serialise_weights(like))
    with Cloud(FetchCheckpoint=streamed(*messages)) as cloud, session_of(cloud) as session:
        found = session.fetch(DATASET, JOB, like=like)
    assert found.keys() == like.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in like.items())


def test_more_than_the_models_weights_take_is_not_even_begun():
    """A size beyond theirs is refused with the first message: the rest is never drawn."""
    drawn = []

    def script(raw, context):
        for i in range(1000):
            drawn.append(i)
            yield _weights(size=2 << 30) if i == 0 else FetchCheckpointResponse(data=bytes(1 << 20))

    with Cloud(FetchCheckpoint=script) as cloud, session_of(cloud) as session:
        with pytest.raises(CloudAnswerError, match=r"declares .*; the model's take at most \d+$"):
            session.fetch(DATASET, JOB, like=BLANK)
        assert cloud.ended.wait(10)
    assert len(drawn) < 100


def test_endless_weights_end():
    def script(raw, context):
        yield _weights(size=len(WEIGHTS) + 1)
        yield from itertools.repeat(FetchCheckpointResponse())

    with Cloud(FetchCheckpoint=script) as cloud, session_of(cloud) as session:
        with pytest.raises(CloudAnswerError):
            session.fetch(DATASET, JOB, like=BLANK)
        assert cloud.ended.wait(10)


@pytest.mark.parametrize("method", ["FetchCheckpoint", "FetchLogits"])
def test_a_byte_now_and_then_is_not_waited_for(method):
    """Each message comes in time, and the whole does not."""
    first, more = {
        "FetchCheckpoint": (
            _weights(data=WEIGHTS[:1], size=len(WEIGHTS)),
            FetchCheckpointResponse(data=b"x"),
        ),
        "FetchLogits": (FetchLogitsResponse(logits=b"x"),) * 2,
    }[method]

    def script(raw, context):
        yield first
        while not cloud.release.wait(0.05) and context.is_active():
            yield more

    with Cloud(**{method: script}) as cloud, session_of(cloud, fetch_s=0.4, timeout_s=30.0) as session:
        session.create(DATASET, dataset_spec())
        with pytest.raises(CloudDeadlineError, match=r"so slowly that [\d.]+ s") as caught:
            calls_of(session)[method]()
        assert one_line(caught)
        assert cloud.ended.wait(10)


def test_a_message_above_the_limit_is_not_taken():
    with (
        Cloud(FetchCheckpoint=streamed(_weights(data=bytes(2_000_000)))) as cloud,
        session_of(cloud, max_answer_bytes=1_000_000) as session,
    ):
        with pytest.raises(CloudError) as caught:
            session.fetch(DATASET, JOB, like=BLANK)
        assert one_line(caught)
