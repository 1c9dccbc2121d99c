"""Clients that break the rules: each is refused with the right status, and the server serves on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import grpc
import hypothesis.strategies as st
import pytest
import torch
from delta_server.app import ServerThread
from delta_server.config import ServerConfig
from hypothesis import HealthCheck, given, settings

from delta.wire.exchange import ExchangeRequest, ExchangeResponse
from delta.wire.predict import PredictRequest, PredictResponse, PredictStreamRequest, PredictStreamResponse
from delta.wire.session import PROTOCOL_VERSION, Hello, encode_binding, hello_message
from delta.wire.tensors import NamedTensor, TensorMessage
from tests.cloud_fixtures import PLUGIN
from tests.toy_method import toy_bundle

B = 16
BINDING = toy_bundle().manifest.binding
PREDICT = "/delta.v1.InferenceService/Predict"
STREAM = "/delta.v1.InferenceService/PredictStream"
EXCHANGE = "/delta.v1.ExchangeService/Exchange"
HELLO = PredictStreamRequest(hello=hello_message(BINDING, payload_bytes=B, deadline_ms=20_000))


@pytest.fixture(scope="module")
def server(toy_dir):
    config = ServerConfig(
        bundles=(toy_dir,), plugins=(PLUGIN,), queue_records=32, max_batch=8, handshake_s=0.3, max_streams=4
    )
    with ServerThread(config) as thread:
        yield thread


@pytest.fixture
def half(server):
    return server.models.get("toy").half


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as made:
        yield made


class Stream:
    """A raw stream: what is sent and read is bytes."""

    def __init__(self, channel, path):
        self.requests = queue.SimpleQueue()
        self.call = channel.stream_stream(path)(iter(self.requests.get, None))

    def send(self, *messages):
        for message in messages:
            self.requests.put(message if isinstance(message, bytes) else message.SerializeToString())

    def end(self):
        self.requests.put(None)

    def answers(self, kind=PredictStreamResponse) -> Iterator:
        for raw in self.call:
            yield from kind.FromString(raw).answers

    def refusal(self):
        with pytest.raises(grpc.RpcError) as error:
            for _ in self.call:
                pass
        metadata = dict(error.value.trailing_metadata() or ())
        return error.value.code(), error.value.details(), metadata.get("delta-error")


def _open(channel, hello=HELLO):
    stream = Stream(channel, STREAM)
    stream.send(hello)
    assert PredictStreamResponse.FromString(next(stream.call)).HasField("welcome")
    return stream


def _chunk(first, count=1, data=None, **more):
    return PredictStreamRequest(
        first_id=first, count=count, bits=bytes([first % 200]) * (B * count) if data is None else data, **more
    )


def _still_serves(channel):
    stream = _open(channel)
    stream.send(_chunk(7))
    stream.end()
    (answer,) = stream.answers()
    assert torch.frombuffer(bytearray(answer.logits), dtype=torch.float32).tolist() == [14.0] * 4


def _binding(**changes):
    binding = encode_binding(BINDING)
    for name, value in changes.items():
        setattr(binding, name, value)
    return binding


@pytest.mark.parametrize(
    ("hello", "status", "text"),
    [
        (
            Hello(protocol_version=0, binding=_binding(), payload_bytes=B, deadline_ms=9),
            "FAILED_PRECONDITION",
            "version",
        ),
        (
            Hello(protocol_version=2, binding=_binding(), payload_bytes=B, deadline_ms=9),
            "FAILED_PRECONDITION",
            "version",
        ),
        (
            Hello(protocol_version=1, binding=_binding(cloud_hash="0" * 64), payload_bytes=B, deadline_ms=9),
            "FAILED_PRECONDITION",
            "cloud_hash differs",
        ),
        (
            Hello(
                protocol_version=1, binding=_binding(release_hash="0" * 64), payload_bytes=B, deadline_ms=9
            ),
            "FAILED_PRECONDITION",
            "release_hash differs",
        ),
        (
            Hello(protocol_version=1, binding=_binding(mechanism="other/9"), payload_bytes=B, deadline_ms=9),
            "FAILED_PRECONDITION",
            "mechanism differs",
        ),
        (
            Hello(protocol_version=1, binding=_binding(model="other"), payload_bytes=B, deadline_ms=9),
            "FAILED_PRECONDITION",
            "model 'other' is not served",
        ),
        (
            Hello(protocol_version=1, binding=_binding(), payload_bytes=B + 1, deadline_ms=9),
            "FAILED_PRECONDITION",
            "payload differs",
        ),
        (Hello(protocol_version=1, binding=_binding(), payload_bytes=B), "INVALID_ARGUMENT", "deadline"),
    ],
)
def test_a_hello_that_does_not_match_says_what_differs(channel, hello, status, text):
    stream = Stream(channel, STREAM)
    stream.send(PredictStreamRequest(hello=hello))
    code, details, name = stream.refusal()
    assert (code.name, text in details) == (status, True), details
    assert name in ("cloud-mismatch", "request")
    _still_serves(channel)


def test_a_stream_needs_its_hello_first(channel):
    stream = Stream(channel, STREAM)
    stream.send(_chunk(1))
    assert stream.refusal()[::2] == (grpc.StatusCode.INVALID_ARGUMENT, "request")
    exchange = Stream(channel, EXCHANGE)
    exchange.send(ExchangeRequest(operation="scale"))
    assert exchange.refusal()[0] == grpc.StatusCode.INVALID_ARGUMENT


def test_a_silent_stream_is_ended(channel):
    code, details, _ = Stream(channel, STREAM).refusal()
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "no Hello" in details


@pytest.mark.parametrize("path", [STREAM, EXCHANGE])
@pytest.mark.parametrize("raw", [b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 20000])
def test_malformed_protobuf_is_refused(channel, path, raw):
    stream = Stream(channel, path)
    stream.send(raw)
    assert stream.refusal()[0] == grpc.StatusCode.INVALID_ARGUMENT
    late = _open(channel)
    late.send(raw)
    assert late.refusal()[0] == grpc.StatusCode.INVALID_ARGUMENT
    _still_serves(channel)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200))
def test_any_bytes_are_answered_or_refused(channel, raw):
    for path in (STREAM, EXCHANGE):
        stream = Stream(channel, path)
        stream.send(raw)
        stream.end()
        try:
            for _ in stream.call:
                pass
        except grpc.RpcError as error:
            assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)  # noqa: PT017
    with pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary(PREDICT)(raw, timeout=5)
    assert refusal.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)


def test_a_bad_chunk_fails_alone(channel):
    stream = _open(channel)
    bad = {
        1: _chunk(1, count=0, data=b""),
        2: _chunk(2, count=1, data=bytes(B - 1)),
        3: _chunk(3, count=2, data=bytes(B)),
        4: _chunk(4, count=33, data=bytes(33 * B)),
        5: _chunk(5, count=2**32 - 1, data=b""),
        6: _chunk(6, data=b"\xff" * B),  # the cloud half fails on it
        7: PredictStreamRequest(first_id=7, hello=HELLO.hello),
    }
    stream.send(*bad.values(), _chunk(9))
    stream.end()
    answers = {answer.first_id: answer for answer in stream.answers()}
    assert set(answers) == {*bad, 9}
    for first in bad:
        assert answers[first].failure.code == ("internal" if first == 6 else "request"), first
        assert not answers[first].logits
        assert answers[first].failure.message
    assert not answers[9].HasField("failure")


@pytest.mark.parametrize(
    "tensor",
    [
        TensorMessage(dtype=9, dims=[2**63, 4], data=b""),
        TensorMessage(dtype=9, dims=[2**31, 2**31], data=b"1234"),
        TensorMessage(dtype=9, dims=[1] * 1000, data=b"1234"),
        TensorMessage(dtype=99, dims=[1, 1], data=b"1234"),
        TensorMessage(dtype=9, dims=[1, 1], data=b"123"),
        TensorMessage(dtype=9, dims=[0, 1], data=b""),
        TensorMessage(dtype=10, dims=[1, 1], data=bytes(8)),
    ],
)
def test_shape_bombs_over_exchange_fail_alone(channel, tensor):
    stream = Stream(channel, EXCHANGE)
    good = TensorMessage(dtype=9, dims=[1, 1], data=b"\x00\x00\x80\x3f")
    stream.send(
        ExchangeRequest(hello=hello_message(BINDING, payload_bytes=0, deadline_ms=20_000)),
        ExchangeRequest(request_id=1, operation="scale", tensors=[NamedTensor(name="x", tensor=tensor)]),
        ExchangeRequest(request_id=2, operation="nothing" * 100),
        ExchangeRequest(request_id=3, operation="scale", tensors=[NamedTensor(name="x", tensor=good)]),
    )
    stream.end()
    answers = {answer.request_id: answer for answer in stream.answers(ExchangeResponse)}
    assert answers[1].failure.code == "request"
    assert answers[2].failure.code == "unknown-method"
    assert answers[3].tensors[0].tensor.data == b"\x00\x00\x00\x40"


def _predict_request(**changes):
    fields = {
        "protocol_version": PROTOCOL_VERSION,
        "binding": encode_binding(BINDING),
        "count": 1,
        "bits": bytes([3]) * B,
        **changes,
    }
    return PredictRequest(**fields).SerializeToString()


def test_unary_predict_answers(channel):
    raw = channel.unary_unary(PREDICT)(_predict_request(), timeout=5)
    logits = PredictResponse.FromString(raw).logits
    assert torch.frombuffer(bytearray(logits), dtype=torch.float32).tolist() == [6.0] * 4


@pytest.mark.parametrize(
    ("changes", "timeout", "status", "text"),
    [
        ({}, None, "INVALID_ARGUMENT", "no deadline; set one of at most 60 s"),
        ({}, 3600, "INVALID_ARGUMENT", "too long; set one of at most 60 s"),
        ({"count": 0}, 5, "INVALID_ARGUMENT", "0 records"),
        ({"bits": bytes(B + 1)}, 5, "INVALID_ARGUMENT", "need 16 bytes, got 17"),
        ({"protocol_version": 7}, 5, "FAILED_PRECONDITION", "version"),
        ({"binding": _binding(cloud_hash="0")}, 5, "FAILED_PRECONDITION", "cloud_hash"),
        ({"bits": b"\xff" * B}, 5, "INTERNAL", "internal error"),
    ],
)
def test_unary_predict_refuses(channel, changes, timeout, status, text):
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(PREDICT)(_predict_request(**changes), timeout=timeout)
    assert error.value.code().name == status
    assert text in error.value.details()


def test_an_oversized_message_is_refused(server, toy_dir):
    with grpc.insecure_channel(server.address) as channel:
        limit = server.models.get("toy").max_message_bytes
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(PREDICT)(bytes(limit + 1), timeout=20)
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        _still_serves(channel)


def test_a_flood_beyond_the_queue_is_refused_and_slots_come_back(channel, half):
    half.started.clear()
    half.gate.clear()
    try:
        stream = _open(channel)
        stream.send(_chunk(0))
        assert half.started.wait(10)
        stream.send(*[_chunk(i) for i in range(1, 200)])
        refused = []
        answers = stream.answers()
        while len(refused) < 200 - 32:
            refused.append(next(answers))
        assert {answer.failure.code for answer in refused} == {"cloud-overloaded"}
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(PREDICT)(_predict_request(), timeout=5)
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    finally:
        half.gate.set()
    stream.end()
    served = list(answers)
    assert len(served) == 32
    assert sorted(a.first_id for a in served + refused) == list(range(200))
    for answer in served:
        assert torch.frombuffer(bytearray(answer.logits), dtype=torch.float32)[0] == 2 * (
            answer.first_id % 200
        )
    _still_serves(channel)


def test_a_cancelled_stream_frees_its_slots_and_runs_no_more(server, channel, half):
    half.started.clear()
    half.gate.clear()
    stream = _open(channel)
    stream.send(_chunk(0))
    assert half.started.wait(10)
    before = len(half.batches)
    stream.send(*[_chunk(i) for i in range(1, 100)])
    overflow = next(stream.answers())  # the queue is full
    assert overflow.failure.code == "cloud-overloaded"
    stream.call.cancel()
    gone = threading.Event()
    stream.call.add_callback(gone.set)
    assert stream.call.code() == grpc.StatusCode.CANCELLED
    _wait_for_streams(server, 0)
    half.gate.set()
    _wait_for_free_slots(server)  # they are given back once the thread has passed over what was queued
    _still_serves(channel)
    assert sum(half.batches[before:]) == 1  # what the cancelled stream had queued never ran


def _wait_for_streams(server, count):
    """Poll the server's own loop, one turn at a time, until so many streams are open."""
    import asyncio

    async def turn():
        while len(server.server.sessions) != count:
            await asyncio.sleep(0.001)

    asyncio.run_coroutine_threadsafe(turn(), server.loop).result(10)


def _wait_for_free_slots(server):
    """Poll likewise until no admitted record is unanswered."""
    import asyncio

    async def turn():
        while server.server._batcher.admitted:
            await asyncio.sleep(0.001)

    asyncio.run_coroutine_threadsafe(turn(), server.loop).result(10)


def test_too_many_streams_are_refused(server, channel):
    _wait_for_streams(server, 0)
    streams = [_open(channel) for _ in range(3)]
    streams.append(_open(channel))
    with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as another:
        extra = Stream(another, STREAM)
        extra.send(HELLO)
        code, details, name = extra.refusal()
    assert (code, name) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "cloud-overloaded"), details
    for stream in streams:
        stream.end()
        assert list(stream.answers()) == []


def test_an_expired_request_is_answered_with_its_failure(channel, half):
    half.started.clear()
    half.gate.clear()
    stream = _open(channel)
    stream.send(_chunk(0))
    assert half.started.wait(10)
    before = len(half.batches)
    stream.send(_chunk(1, deadline_ms=1), _chunk(2))
    stream.end()
    threading.Timer(0.05, half.gate.set).start()
    answers = {answer.first_id: answer for answer in stream.answers()}
    assert answers[1].failure.code == "cloud-deadline"
    assert answers[0].logits
    assert answers[2].logits
    assert sum(half.batches[before:]) == 1


def test_a_client_that_does_not_read_holds_bounded_memory(toy_dir):
    config = ServerConfig(bundles=(toy_dir,), plugins=(PLUGIN,), stream_requests=8)
    with ServerThread(config) as thread, grpc.insecure_channel(thread.address) as channel:
        stream = _open(channel)
        stream.send(*[_chunk(i, count=256, data=bytes(256 * B)) for i in range(400)])
        stream.end()
        # Reading late changes nothing: every request has its one answer.
        assert sorted(answer.first_id for answer in stream.answers()) == list(range(400))


def test_a_draining_server_answers_what_was_sent_and_opens_nothing_new(toy_dir):
    config = ServerConfig(bundles=(toy_dir,), plugins=(PLUGIN,))
    with ServerThread(config) as thread, grpc.insecure_channel(thread.address) as channel:
        half = thread.models.get("toy").half
        half.gate.clear()
        stream = _open(channel)
        stream.send(*[_chunk(i) for i in range(20)])
        assert half.started.wait(10)
        stopper = threading.Thread(target=thread.stop)
        stopper.start()
        drained = PredictStreamResponse.FromString(next(stream.call))
        assert drained.draining
        half.gate.set()
        stream.end()
        assert sorted(answer.first_id for answer in stream.answers()) == list(range(20))
        stopper.join(20)
        assert not stopper.is_alive()
