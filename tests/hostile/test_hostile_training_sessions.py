# ruff: noqa: SIM117 - a session inside a cloud, and what it must raise inside both, read best nested
"""Training clouds that break the rules of an interactive job."""

from __future__ import annotations

import math

import pytest
import torch

from delta.errors import CloudAnswerError, CloudError, CloudUnavailableError, RequestError
from delta.wire.status import Failure, status_of
from delta.wire.training import DeleteDatasetResponse, TrainInteractivelyRequest, TrainInteractivelyResponse
from tests.scripted_training import GARBAGE, RELEASES, Cloud, drained, one_line, session_of, streamed
from tests.training_jobs import CLASSES, DATASET, JOB, RECORDS, chunks_of, dataset_spec, job_spec

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
    with Cloud(TrainInteractively=_answers(answer, _logits())) as cloud, session_of(cloud) as session:
        with _interact(session) as running:
            for _ in range(2):
                with pytest.raises(CloudAnswerError) as caught:
                    _exchange(running)
                assert one_line(caught)
        assert cloud.ended.wait(10)
        assert len(cloud.received["TrainInteractively"]) == 2


def test_an_answer_that_is_not_finite_is_the_callers_to_judge():
    nan = TrainInteractivelyResponse(logits=torch.full((8, CLASSES), torch.nan).numpy().tobytes())
    with Cloud(TrainInteractively=_answers(nan)) as cloud, session_of(cloud) as session:
        with _interact(session) as running:
            assert _exchange(running).isnan().all()


def test_a_refused_batch_leaves_the_session_as_it_is():
    refusal = TrainInteractivelyResponse(failure=Failure(code="request", message="too\nfew"))
    with Cloud(TrainInteractively=_answers(refusal, _logits())) as cloud, session_of(cloud) as session:
        with _interact(session) as running:
            with pytest.raises(RequestError, match="too few"):
                _exchange(running)
            assert _exchange(running).shape == (8, CLASSES)


def test_a_cloud_cannot_choose_an_error_of_the_private_side():
    refusal = TrainInteractivelyResponse(failure=Failure(code="budget", message="spent"))
    with Cloud(TrainInteractively=_answers(refusal)) as cloud, session_of(cloud) as session:
        with _interact(session) as running, pytest.raises(CloudError):
            _exchange(running)


@pytest.mark.parametrize(
    "greeting", [TrainInteractivelyResponse(), _logits(), None], ids=["", "logits", "none"]
)
def test_a_job_without_a_greeting_does_not_begin(greeting):
    script = streamed(*([] if greeting is None else [greeting]))
    with Cloud(TrainInteractively=script) as cloud, session_of(cloud) as session:
        with pytest.raises((CloudAnswerError, CloudUnavailableError)):
            _interact(session)
        assert cloud.ended.wait(10)
        assert len(cloud.received["TrainInteractively"]) <= 1


@pytest.mark.parametrize("how", ["cut", "ended"])
def test_a_cut_session_is_unavailable_and_stays_so(how):
    rest = [CloudUnavailableError("gone")] if how == "cut" else []
    with Cloud(TrainInteractively=_answers(_logits(), *rest)) as cloud, session_of(cloud) as session:
        with _interact(session) as running:
            _exchange(running)
            for _ in range(2):
                with pytest.raises(CloudUnavailableError) as caught:
                    _exchange(running)
                assert one_line(caught)


def test_an_answer_that_was_not_asked_for_is_found_at_the_end():
    def script(raws, context):
        next(raws)
        yield READY
        for _ in raws:
            yield _logits()
        yield _logits()

    with Cloud(TrainInteractively=script) as cloud, session_of(cloud) as session:
        with pytest.raises(CloudAnswerError, match="never sent"), _interact(session) as running:
            _exchange(running)


def test_no_label_leaves_without_an_update():
    with Cloud(TrainInteractively=_answers(_logits(), _logits())) as cloud, session_of(cloud) as session:
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
            "UploadReleases": drained(RECORDS),
            "TrainInteractively": _answers(answer, answer, answer),
            "DeleteDataset": lambda raw, context: DeleteDatasetResponse(),
        }
        with Cloud(**scripts) as cloud, session_of(cloud) as session:
            session.create(DATASET, dataset_spec())
            session.upload(DATASET, chunks_of(RELEASES))
            with _interact(session) as running:
                for _ in range(3):
                    _exchange(running)
            session.delete(DATASET)
            sent.append((cloud.received, session.bytes_up))
    assert all(other == sent[0] for other in sent)
    assert sent[0][1] == sum(len(raw) for raws in sent[0][0].values() for raw in raws)
