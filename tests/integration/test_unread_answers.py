"""Answers that clients leave unread hold bounded memory: of a stream, of all streams, and for a bounded time."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import ExitStack

import grpc
import pytest
import torch
from delta_server.app import ServerThread
from delta_server.config import ServerConfig

from delta.errors import ConfigError
from delta.methods.schema import Operation, TensorSpec
from delta.wire.exchange import ExchangeRequest, ExchangeResponse
from delta.wire.predict import PredictStreamRequest, PredictStreamResponse
from delta.wire.session import hello_message
from delta.wire.tensors import encode_named
from tests.cloud_fixtures import PLUGIN
from tests.toy_method import toy_bundle

MIB = 2**20
BINDING = toy_bundle().manifest.binding
EXCHANGE = "/delta.v1.ExchangeService/Exchange"
STREAM = "/delta.v1.InferenceService/PredictStream"


class Cloud:
    """A server with two operations of large answers, whose runs wait at a gate."""

    def __init__(self, toy_dir, **settings):
        self.stack = ExitStack()
        config = ServerConfig(bundles=(toy_dir,), plugins=(PLUGIN,), threads=1, **settings)
        self.thread = self.stack.enter_context(ServerThread(config))
        self.half = self.thread.models.get("toy").half
        self.gate = threading.Event()
        self.most = 0
        record = TensorSpec(torch.uint8, ("n",))
        self.half.operations = {
            **self.half.operations,
            "grow": Operation({"x": record}, {"y": TensorSpec(torch.uint8, ("n", MIB))}, self.grow),
            "free": Operation({"x": record}, {"y": TensorSpec(torch.uint8, ("m",))}, self.free),
        }

    def grow(self, tensors):
        self.gate.wait(20)
        self.most = max(self.most, self.held)
        return {"y": torch.zeros(len(tensors["x"]), MIB, dtype=torch.uint8)}

    def free(self, tensors):
        self.gate.wait(20)
        return {"y": torch.zeros(10 * len(tensors["x"]), dtype=torch.uint8)}

    @property
    def held(self):
        return sum(session.held for session in list(self.thread.server.sessions))

    def ended(self):
        return all(session.closed for session in list(self.thread.server.sessions))

    def until(self, reached):
        """Wait for what a client cannot see."""
        late = time.monotonic() + 10
        while not reached():
            assert time.monotonic() < late, f"{self.held} bytes are held"
            time.sleep(0.005)

    def open(self):
        # Without the probe gRPC takes 64 KiB ahead of a client that does not read, and no more.
        options = [("grpc.max_receive_message_length", 16 * MIB), ("grpc.http2.bdp_probe", 0)]
        return Stream(self.stack.enter_context(grpc.insecure_channel(self.thread.address, options)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.gate.set()
        self.half.gate.set()
        self.stack.close()


class Stream:
    """A raw `Exchange` that reads only when told to."""

    def __init__(self, channel):
        self.requests = queue.SimpleQueue()
        self.call = channel.stream_stream(EXCHANGE)(iter(self.requests.get, None))
        hello = hello_message(BINDING, payload_bytes=0, deadline_ms=20_000)
        self.requests.put(ExchangeRequest(hello=hello).SerializeToString())
        assert ExchangeResponse.FromString(next(self.call)).HasField("welcome")

    def ask(self, *, op="grow", records=1, times=1):
        tensors = encode_named({"x": torch.zeros(records, dtype=torch.uint8)})
        for number in range(times):
            message = ExchangeRequest(request_id=number, operation=op, tensors=tensors)
            self.requests.put(message.SerializeToString())

    def read(self):
        (answer,) = ExchangeResponse.FromString(next(self.call)).answers
        return answer


def test_a_stream_is_not_read_beyond_what_its_answers_may_come_to(toy_dir):
    with Cloud(toy_dir) as cloud:
        stream = cloud.open()
        stream.ask(times=40)
        cloud.until(lambda: cloud.held > 8 * MIB)
        other = cloud.open()
        other.ask()
        cloud.until(lambda: cloud.held > 9 * MIB)
        cloud.gate.set()
        assert [stream.read().request_id for _ in range(40)] == list(range(40))
        assert len(other.read().tensors) == 1
        assert 9 * MIB < cloud.most < 11 * MIB
        cloud.until(lambda: cloud.held == 0)


def test_one_answer_beyond_a_streams_limit_works(toy_dir):
    with Cloud(toy_dir) as cloud:
        cloud.gate.set()
        stream = cloud.open()
        stream.ask(records=12, times=2)
        for _ in range(2):
            assert len(stream.read().tensors[0].tensor.data) == 12 * MIB


def test_predictions_hold_room_from_their_admission(toy_dir):
    with Cloud(toy_dir) as cloud, grpc.insecure_channel(cloud.thread.address) as channel:
        cloud.half.gate.clear()
        requests = queue.SimpleQueue()
        call = channel.stream_stream(STREAM)(iter(requests.get, None))
        hello = hello_message(BINDING, payload_bytes=16, deadline_ms=20_000)
        requests.put(PredictStreamRequest(hello=hello).SerializeToString())
        requests.put(PredictStreamRequest(first_id=7, count=32, bits=bytes(512)).SerializeToString())
        cloud.until(lambda: cloud.held >= 32 * 4 * 4)
        assert cloud.held < 32 * 4 * 4 + 100
        cloud.half.gate.set()
        assert PredictStreamResponse.FromString(next(call)).HasField("welcome")
        assert PredictStreamResponse.FromString(next(call)).answers[0].first_id == 7
        cloud.until(lambda: cloud.held == 0)


def test_all_streams_together_are_bounded_and_room_comes_back(toy_dir):
    with Cloud(toy_dir, exchange_message_bytes=4 * MIB, unread_bytes=4 * MIB) as cloud:
        first, second, third = (cloud.open() for _ in range(3))
        first.ask(records=2)
        cloud.until(lambda: cloud.held > 2 * MIB)
        second.ask(records=2)
        failure = second.read().failure
        assert failure.code == "cloud-overloaded"
        assert "do not fit" in failure.message
        third.ask(records=1)
        cloud.until(lambda: cloud.held > 3 * MIB)
        first.call.cancel()  # one that goes takes what it held with it
        cloud.until(lambda: cloud.held < 2 * MIB)
        second.ask(records=2)
        cloud.gate.set()
        assert len(second.read().tensors) == len(third.read().tensors) == 1


def test_answers_larger_than_a_message_are_refused_before_they_are_made(toy_dir):
    with Cloud(toy_dir, exchange_message_bytes=2 * MIB) as cloud:
        stream = cloud.open()
        stream.ask(records=2)  # the gate is closed: this one is not run
        failure = stream.read().failure
        assert failure.code == "request"
        assert f"at most {2 * MIB}" in failure.message
        cloud.until(lambda: cloud.held == 0)


def test_sizes_that_only_an_answer_has_are_taken_for_the_largest_and_checked(toy_dir):
    with Cloud(toy_dir, exchange_message_bytes=MIB) as cloud:
        stream = cloud.open()
        stream.ask(op="free")
        cloud.until(lambda: cloud.held == MIB)
        cloud.gate.set()
        assert len(stream.read().tensors[0].tensor.data) == 10
        stream.ask(op="free", records=MIB // 8)
        assert f"{10 * MIB // 8} bytes" in stream.read().failure.message
        cloud.until(lambda: cloud.held == 0)


def test_a_client_that_reads_nothing_is_ended(toy_dir):
    with Cloud(toy_dir, unread_s=0.3) as cloud:
        cloud.gate.set()
        stream = cloud.open()
        stream.ask(times=8)
        cloud.until(lambda: cloud.most > 3 * MIB)
        cloud.until(lambda: cloud.ended() and MIB < cloud.held < 1.1 * MIB)  # the message that gRPC has
        assert len(stream.read().tensors) == 1
        with pytest.raises(grpc.RpcError) as ended:
            stream.read()
        assert ended.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "unread for 0.3 s" in ended.value.details()
        cloud.until(lambda: not cloud.thread.server.sessions)


def test_a_stream_that_is_refused_holds_what_grpc_has_until_that_is_read(toy_dir):
    with Cloud(toy_dir) as cloud:
        cloud.gate.set()
        stream = cloud.open()
        stream.ask(times=4)
        cloud.until(lambda: cloud.most > 3 * MIB)
        stream.requests.put(b"\xff")
        cloud.until(lambda: cloud.ended() and MIB < cloud.held < 1.1 * MIB)
        assert len(stream.read().tensors) == 1
        with pytest.raises(grpc.RpcError) as ended:
            stream.read()
        assert ended.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        cloud.until(lambda: not cloud.thread.server.sessions)


def test_a_bound_that_the_largest_answer_exceeds_is_refused():
    with pytest.raises(ConfigError, match="unread_bytes"):
        ServerConfig.parse({"bundles": ("a",), "unread_bytes": MIB}, what="server")
