"""Training messages: names, tokens, specifications, chunks, batches, states and results."""

import hashlib
import json
import math
import time

import pytest
import torch

from delta.bundle.manifest import Architecture
from delta.errors import CloudAnswerError, CloudDeniedError, RequestError
from delta.training.cloud import JobState, UploadChunk
from delta.training.spec import DatasetSpec, JobSpec
from delta.wire.training import (
    MAX_SPEC_BYTES,
    PIECE_BYTES,
    UPLOAD_BYTES,
    InteractiveHello,
    TrainInteractivelyRequest,
    UploadHead,
    UploadReleasesRequest,
    WatchTrainingResponse,
    bearer,
    check_name,
    checkpoint_messages,
    decode_chunk,
    decode_exchange,
    decode_spec,
    decode_state,
    encode_chunk,
    encode_exchange,
    encode_spec,
    encode_state,
    logits_messages,
    max_upload_records,
    pack_flags,
    pack_labels,
    records_a_chunk,
    resized,
    token_of,
    unpack_labels,
)
from tests.training_jobs import CLASSES, dataset_spec, job_spec, release_config


def _padded_spec():
    """15 bits a record in 2 bytes, so that there is a padding bit."""
    message = release_config().message.model_copy(update={"shape": (1, 3, 5)})
    return dataset_spec(release=release_config(message=message), records=8)


SPEC = _padded_spec()


def _chunk(first=0, n=3, **changes):
    fields = {
        "bits": torch.arange(2 * n, dtype=torch.uint8).mul(2).view(n, 2),
        "labels": torch.arange(n) % CLASSES,
        "held_out": torch.arange(n) == 0,
    }
    return UploadChunk(first, **{**fields, **changes})


def _message(**changes):
    message = encode_chunk(_chunk(), classes=CLASSES)
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def _decoded(message, **changes):
    return decode_chunk(message, **{"spec": SPEC, "max_records": 4, **changes})


# Names and tokens


def test_a_name_is_32_lower_case_hex_digits():
    assert check_name("0123456789abcdef" * 2) == "0123456789abcdef" * 2


@pytest.mark.parametrize(
    "name", ["", "0" * 31, "0" * 33, "A" * 32, "../../" + "0" * 26, "0" * 32 + "\n", "g" * 32, "٣" * 32]
)
def test_any_other_name_is_refused(name):
    with pytest.raises(RequestError, match="32 lower-case hex"):
        check_name(name)


def test_a_token_comes_back():
    token = bytes(range(32))
    assert token_of([("user-agent", "x"), ("authorization", bearer(token))]) == token


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["Bearer " + "0" * 63],
        ["Bearer " + "0" * 65],
        ["bearer " + "0" * 64],
        ["Bearer " + "A" * 64],
        ["Basic " + "0" * 64],
        [b"Bearer " + b"0" * 64],
        ["Bearer " + "0" * 64] * 2,
    ],
)
def test_a_call_without_one_good_token_is_denied(values):
    with pytest.raises(CloudDeniedError) as caught:
        token_of([("authorization", value) for value in values])
    assert "0000" not in str(caught.value)


def test_no_metadata_is_no_token():
    with pytest.raises(CloudDeniedError):
        token_of(None)


# Specifications


def test_specifications_come_back_and_equal_ones_are_equal_bytes():
    for spec in (SPEC, job_spec()):
        raw = encode_spec(spec)
        assert decode_spec(type(spec), raw, what="spec") == spec
        assert encode_spec(decode_spec(type(spec), raw, what="spec")) == raw


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        encode_spec(job_spec()),
        encode_spec(SPEC).replace(b'"records":8', b'"records":0'),
        encode_spec(SPEC).replace(b'"records":8', b'"records":8,"more\\n":1'),
        b" " * (MAX_SPEC_BYTES + 1),
    ],
    ids=range(10),
)
def test_what_is_no_specification_is_refused_in_one_line(raw):
    with pytest.raises(RequestError) as caught:
        decode_spec(DatasetSpec, raw, what="data set")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("word", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_none_is_refused_inside_arguments_too(word):
    value = json.loads(encode_spec(job_spec()))
    value["architecture"]["arguments"]["scale"] = "here"
    with pytest.raises(RequestError):
        decode_spec(JobSpec, json.dumps(value).replace('"here"', word).encode(), what="job")


def test_a_specification_that_cannot_be_sent_is_refused_before_it_is():
    for arguments in ({"scale": math.nan}, {"text": "x" * MAX_SPEC_BYTES}):
        architecture = Architecture(target="delta.models:resnet18", arguments=arguments)
        with pytest.raises(RequestError):
            encode_spec(job_spec(architecture=architecture))


# Chunks


def test_a_chunk_comes_back_with_all_its_parts():
    message = UploadReleasesRequest.FromString(encode_chunk(_chunk(5), classes=CLASSES).SerializeToString())
    back = _decoded(message)
    assert back.first == 5
    for name in ("bits", "labels", "held_out"):
        assert torch.equal(getattr(back, name), getattr(_chunk(), name))


def test_the_order_of_bits_is_the_documented_one():
    assert pack_labels(torch.tensor([1, 2, 0, 2, 1]), classes=3).hex() == "6240"
    assert pack_labels(torch.tensor([9, 1]), classes=10).hex() == "91"
    assert pack_flags(torch.tensor([True] + [False] * 8 + [True])).hex() == "8040"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 0}, "0 records"),
        ({"count": 5}, "5 records"),
        ({"count": 2**32 - 1}, "records"),
        ({"count": 2}, "need 4 bytes"),
        ({"bits": b""}, "need 6 bytes"),
        ({"bits": bytes([0, 1] * 3)}, "padding"),
        ({"labels": b""}, "need 1 bytes"),
        ({"labels": bytes(2)}, "need 1 bytes"),
        ({"labels": bytes([0b00011001])}, "padding"),
        ({"labels": bytes([0b00110000])}, "out of range"),
        ({"labels": bytes([0b01000000])}, "held-out"),
        ({"held_out": b""}, "need 1 bytes"),
        ({"held_out": bytes([0b00010000])}, "padding"),
        ({"first": 6}, "data set of 8"),
        ({"first": 2**64 - 1}, "data set of 8"),
    ],
)
def test_a_wrong_chunk_is_refused(changes, words):
    with pytest.raises(RequestError, match=words):
        _decoded(_message(**changes))


def test_a_second_head_is_refused():
    message = _message()
    message.head.CopyFrom(UploadHead(protocol_version=1))
    with pytest.raises(RequestError, match="one head"):
        _decoded(message)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": torch.tensor([0, 1])},
        {"labels": torch.tensor([0.0, 1, 2])},
        {"labels": torch.tensor([0, 1, 3])},
        {"labels": torch.tensor([0, -1, 2])},
        {"labels": torch.tensor([1, 1, 2])},
        {"held_out": torch.tensor([1, 0, 0])},
        {"held_out": torch.tensor([[True, False, False]])},
        {"bits": torch.zeros(3, 2)},
        {"bits": torch.zeros(3, dtype=torch.uint8)},
    ],
    ids=range(9),
)
def test_a_chunk_that_may_not_leave_is_refused_before_it_does(changes):
    with pytest.raises(RequestError):
        encode_chunk(_chunk(**changes), classes=CLASSES)


def test_chunks_are_cut_and_nothing_is_lost():
    parts = list(resized([_chunk(0, 5), _chunk(5, 0), _chunk(5, 2)], most=2))
    assert [(part.first, len(part.bits)) for part in parts] == [(0, 2), (2, 2), (4, 1), (5, 2)]
    assert torch.equal(torch.cat([part.labels for part in parts[:3]]), _chunk(0, 5).labels)


def test_cutting_takes_chunks_as_they_are_asked_for():
    taken = []

    def chunks():
        for i in range(3):
            taken.append(i)
            yield _chunk(3 * i)

    next(resized(chunks(), most=8))
    assert taken == [0]


@pytest.mark.parametrize("payload_bytes", [1, 128, 25_088, UPLOAD_BYTES, 10 * UPLOAD_BYTES])
def test_a_message_is_bounded_and_holds_one_record_at_least(payload_bytes):
    taken, sent = max_upload_records(payload_bytes), records_a_chunk(payload_bytes, most=1024)
    assert 1 <= sent <= taken
    assert taken == 1 or taken * payload_bytes <= UPLOAD_BYTES


def test_4096_labels_take_milliseconds():
    labels = torch.arange(4096) % 1000
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        back = unpack_labels(pack_labels(labels, classes=1000), count=4096, classes=1000)
        best = min(best, time.perf_counter() - start)
    assert torch.equal(back, labels)
    assert best < 0.02


# Batches of an interactive training


def _batch(**changes):
    message = encode_exchange(_chunk().bits, _chunk().labels, classes=CLASSES, update=True, checkpoint=False)
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def test_a_batch_comes_back():
    bits, labels = decode_exchange(_batch(), spec=SPEC, max_records=4)
    assert torch.equal(bits, _chunk().bits)
    assert torch.equal(labels, _chunk().labels)


def test_without_an_update_no_label_leaves():
    message = encode_exchange(_chunk().bits, _chunk().labels, classes=CLASSES, update=False, checkpoint=True)
    assert message.labels == b""
    assert message.checkpoint
    assert decode_exchange(message, spec=SPEC, max_records=4)[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 0},
        {"count": 2},
        {"update": False},
        {"labels": b""},
        {"labels": b"\xff"},
        {"bits": bytes([0, 1] * 3)},
    ],
)
def test_a_wrong_batch_is_refused(changes):
    with pytest.raises(RequestError):
        decode_exchange(_batch(**changes), spec=SPEC, max_records=4)


def test_a_second_hello_is_refused():
    with pytest.raises(RequestError, match="one hello"):
        decode_exchange(TrainInteractivelyRequest(hello=InteractiveHello()), spec=SPEC, max_records=4)


# States and results


@pytest.mark.parametrize(
    "state",
    [
        JobState("waiting"),
        JobState("running", 3, 10, 0.5),
        JobState("running", 0, 0, 0.0),
        JobState("done", 10, 10, 0.25),
        JobState("failed", message="the training failed"),
        JobState("cancelled", 2, 10),
    ],
)
def test_a_state_comes_back(state):
    message = WatchTrainingResponse.FromString(encode_state(state).SerializeToString())
    assert decode_state(message) == state


@pytest.mark.parametrize("number", [0, 6, 99, -1])
def test_an_unknown_state_is_a_bad_answer(number):
    with pytest.raises(CloudAnswerError, match="state number"):
        decode_state(WatchTrainingResponse(state=number))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_none_from_either_side(loss):
    assert decode_state(WatchTrainingResponse(state=2, loss=loss)).loss is None
    assert not encode_state(JobState("running", loss=loss)).HasField("loss")


def test_what_a_cloud_says_is_made_fit_to_print():
    state = decode_state(WatchTrainingResponse(state=4, message="bad\n\x1b[31m" + "x" * 10_000))
    assert state.message.isprintable()
    assert len(state.message) <= 300


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
def test_results_travel_in_pieces(size):
    data = bytes(i % 251 for i in range(1024)) * (size // 1024 + 1)
    data = data[:size]
    weights = list(checkpoint_messages(data))
    assert (weights[0].size, weights[0].sha256) == (size, hashlib.sha256(data).hexdigest())
    assert b"".join(message.data for message in weights) == data
    logits = list(logits_messages(data))
    assert b"".join(message.logits for message in logits) == data
    assert all(len(message.logits) <= PIECE_BYTES for message in logits)
