# ruff: noqa: SIM117 - a session inside a cloud, and what it must raise inside both, read best nested
"""Clouds that break the rules: each request fails with the right error, in time, and alone."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import grpc
import pytest
import torch
from delta_client import Client, GrpcTransport, fetch_manifest, list_models

from delta.errors import (
    CloudAnswerError,
    CloudDeadlineError,
    CloudError,
    CloudMismatchError,
    CloudOverloadedError,
    CloudUnavailableError,
    RequestError,
)
from delta.transport.base import Binding
from delta.wire.exchange import ExchangeAnswer, ExchangeRequest, ExchangeResponse
from delta.wire.predict import ChunkAnswer, PredictStreamRequest, PredictStreamResponse
from delta.wire.session import Welcome
from delta.wire.status import Failure
from delta.wire.tensors import NamedTensor, OperationSchema, TensorMessage, encode_named
from tests.toy_method import toy_bundle

B, CLASSES = 4, 3
DEADLINE_S = 10.0
WELCOME = Welcome(protocol_version=1, classes=CLASSES, max_records=64, max_message_bytes=4096)


def _greet(**changes):
    welcome = Welcome()
    welcome.CopyFrom(WELCOME)
    for name, value in changes.items():
        setattr(welcome, name, value)
    return PredictStreamResponse(welcome=welcome)


def _honest(chunk, **changes):
    """The right answer: each record's first byte, in every class."""
    rows = torch.frombuffer(bytearray(chunk.bits), dtype=torch.uint8).view(-1, B)[:, :1].float()
    fields = {
        "first_id": chunk.first_id,
        "count": chunk.count,
        "logits": rows.expand(-1, CLASSES).contiguous().numpy().tobytes(),
        **changes,
    }
    return PredictStreamResponse(answers=[ChunkAnswer(**fields)])


class Cloud:
    """A server whose streams follow a script: `script(chunks, context)` yields messages or bytes."""

    def __init__(self, script, *, greeting=None):
        self.script = script
        self.greeting = _greet() if greeting is None else greeting
        self.hellos = []
        self.release = threading.Event()

    def __enter__(self):
        self.server = grpc.server(ThreadPoolExecutor(8))
        handlers = {
            "PredictStream": grpc.stream_stream_rpc_method_handler(self._serve),
            "Exchange": grpc.stream_stream_rpc_method_handler(self._serve),
        }
        for service in ("delta.v1.InferenceService", "delta.v1.ExchangeService"):
            self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.address = "127.0.0.1:{}".format(self.server.add_insecure_port("127.0.0.1:0"))
        self.server.start()
        return self

    def __exit__(self, *_):
        self.release.set()
        self.server.stop(None).wait()

    def _serve(self, raws, context):
        self.hellos.append(next(raws))
        if self.greeting is not None:
            yield self.greeting if isinstance(self.greeting, bytes) else self.greeting.SerializeToString()
        for message in self.script(raws, context):
            yield message if isinstance(message, bytes) else message.SerializeToString()


def _chunks(raws):
    return (PredictStreamRequest.FromString(raw) for raw in raws)


def _bits(value, n=1):
    return {"bits": torch.full((n, B), value, dtype=torch.uint8)}


def _right(future, value, n=1):
    return torch.equal(
        future.result(timeout=DEADLINE_S).tensors["logits"], torch.full((n, CLASSES), float(value))
    )


def _session(cloud, **options):
    return GrpcTransport(cloud.address, Binding(), payload_bytes=B, connect_timeout_s=2.0, **options)


def test_an_honest_script_is_understood():
    def script(raws, _):
        for chunk in _chunks(raws):
            yield _honest(chunk)

    with Cloud(script) as cloud, _session(cloud) as transport:
        futures = [transport.submit("predict", _bits(i, 2), deadline_s=DEADLINE_S) for i in range(50)]
        assert all(_right(future, i, 2) for i, future in enumerate(futures))
        assert len(cloud.hellos) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 2},
        {"count": 0},
        {"logits": b""},
        {"logits": bytes(4 * CLASSES - 1)},
        {"logits": bytes(4 * CLASSES * 2)},
    ],
)
def test_a_wrong_answer_fails_its_request_alone(changes):
    def script(raws, _):
        for i, chunk in enumerate(_chunks(raws)):
            yield _honest(chunk, **(changes if i == 0 else {}))

    with Cloud(script) as cloud, _session(cloud) as transport:
        wrong, right = (transport.submit("predict", _bits(i), deadline_s=DEADLINE_S) for i in (1, 2))
        with pytest.raises(CloudAnswerError):
            wrong.result()
        assert _right(right, 2)


def test_answers_out_of_order_twice_or_late_reach_only_their_request():
    def script(raws, _):
        chunks = _chunks(raws)
        first, second, third = next(chunks), next(chunks), next(chunks)
        for chunk in (third, third, first, second, first):
            yield _honest(chunk)
        for chunk in chunks:
            yield _honest(chunk)

    with Cloud(script) as cloud, _session(cloud) as transport:
        futures = [transport.submit("predict", _bits(i), deadline_s=DEADLINE_S) for i in range(3)]
        assert all(_right(future, i) for i, future in enumerate(futures))
        assert _right(transport.submit("predict", _bits(9), deadline_s=DEADLINE_S), 9)


def test_an_answer_to_what_was_never_sent_ends_the_session():
    def script(raws, _):
        for chunk in _chunks(raws):
            yield _honest(chunk, first_id=chunk.first_id + 1000)

    with Cloud(script) as cloud, _session(cloud) as transport:
        with pytest.raises(CloudAnswerError, match="never sent"):
            transport.submit("predict", _bits(1), deadline_s=DEADLINE_S).result()


@pytest.mark.parametrize("garbage", [b"\xff" * 30, b"\x12\xff\xff\xff\xff\x07"])
def test_garbage_fails_what_is_pending(garbage):
    def script(raws, _):
        next(raws)
        yield garbage
        yield from ()

    with Cloud(script) as cloud, _session(cloud) as transport:
        with pytest.raises(CloudAnswerError, match="no message of the protocol"):
            transport.submit("predict", _bits(1), deadline_s=DEADLINE_S).result()
    with Cloud(script, greeting=garbage) as cloud, _session(cloud) as transport:
        with pytest.raises(CloudAnswerError, match="welcome"):
            transport.submit("predict", _bits(1), deadline_s=DEADLINE_S).result()


def test_nan_reaches_the_method_which_decides():
    nan = torch.full((1, CLASSES), float("nan")).numpy().tobytes()

    def script(raws, _):
        for chunk in _chunks(raws):
            yield _honest(chunk, logits=nan)

    with Cloud(script) as cloud, _session(cloud) as transport:
        answer = transport.submit("predict", _bits(1), deadline_s=DEADLINE_S).result()
        assert answer.tensors["logits"].isnan().all()


def test_a_server_that_hangs_after_the_handshake_is_late_and_late_answers_are_ignored():
    opened = threading.Event()

    def script(raws, _):
        chunks = _chunks(raws)
        held = next(chunks)
        opened.wait(10)
        yield _honest(held)
        for chunk in chunks:
            yield _honest(chunk)

    with Cloud(script) as cloud, _session(cloud) as transport:
        late = transport.submit("predict", _bits(1), deadline_s=0.2)
        with pytest.raises(CloudDeadlineError):
            late.result(timeout=5)
        opened.set()
        assert _right(transport.submit("predict", _bits(2), deadline_s=DEADLINE_S), 2)
        assert len(cloud.hellos) == 1


def test_a_server_that_never_greets_is_late():
    cloud = Cloud(lambda raws, context: iter(()))
    cloud.greeting = None
    cloud.script = lambda raws, context: (cloud.release.wait(20), iter(()))[1]
    with cloud, _session(cloud) as transport:
        short = transport.submit("predict", _bits(1), deadline_s=0.2)
        with pytest.raises(CloudDeadlineError):
            short.result(timeout=5)
        long = transport.submit("predict", _bits(1), deadline_s=DEADLINE_S)
        with pytest.raises(CloudDeadlineError, match="did not answer within 2 s"):
            long.result(timeout=8)
        cloud.release.set()


def test_a_socket_that_never_speaks_is_unreachable():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with GrpcTransport(address, Binding(), payload_bytes=B, connect_timeout_s=0.3) as transport:
            short = transport.submit("predict", _bits(1), deadline_s=0.1)
            long = transport.submit("predict", _bits(1), deadline_s=DEADLINE_S)
            with pytest.raises(CloudDeadlineError):
                short.result(timeout=5)
            with pytest.raises(CloudUnavailableError, match=f"no cloud answers at {address}"):
                long.result(timeout=5)


def test_a_cut_stream_fails_what_is_pending_and_the_next_request_opens_another():
    cut = threading.Event()

    def script(raws, context):
        chunks = _chunks(raws)
        if not cut.is_set():
            cut.set()
            yield _honest(next(chunks))
            next(chunks)
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        for chunk in chunks:
            yield _honest(chunk)

    with Cloud(script) as cloud, _session(cloud) as transport:
        assert _right(transport.submit("predict", _bits(1), deadline_s=DEADLINE_S), 1)
        with pytest.raises(CloudUnavailableError, match="cut"):
            transport.submit("predict", _bits(2), deadline_s=DEADLINE_S).result()
        assert _right(transport.submit("predict", _bits(3), deadline_s=DEADLINE_S), 3)
        assert len(cloud.hellos) == 2
        assert cloud.hellos[0] == cloud.hellos[1]


def test_a_stream_that_just_ends_fails_what_is_pending():
    def script(raws, _):
        next(raws)
        yield from ()

    with Cloud(script) as cloud, _session(cloud) as transport:
        with pytest.raises(CloudUnavailableError, match="ended the session"):
            transport.submit("predict", _bits(2), deadline_s=DEADLINE_S).result()


@pytest.mark.parametrize(
    ("changes", "options", "text"),
    [
        ({"protocol_version": 2}, {}, "the cloud speaks 2, this side 1"),
        ({"protocol_version": 0}, {}, "the cloud speaks 0"),
        ({"classes": 0}, {}, "classes differ"),
        ({"classes": 4}, {"classes": CLASSES}, "classes differ"),
    ],
)
def test_a_welcome_of_another_version_or_model_is_a_mismatch(changes, options, text):
    with (
        Cloud(lambda raws, _: iter(()), greeting=_greet(**changes)) as cloud,
        _session(cloud, **options) as transport,
    ):
        with pytest.raises(CloudMismatchError, match=text):
            transport.submit("predict", _bits(1), deadline_s=DEADLINE_S).result()


def test_more_records_than_the_cloud_takes_are_refused_here():
    def script(raws, _):
        for chunk in _chunks(raws):
            yield _honest(chunk)

    with Cloud(script) as cloud, _session(cloud) as transport:
        with pytest.raises(RequestError, match="65 records in one request; the cloud takes at most 64"):
            transport.submit("predict", _bits(1, 65), deadline_s=DEADLINE_S).result()
        assert _right(transport.submit("predict", _bits(5, 64), deadline_s=DEADLINE_S), 5, 64)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("cloud-overloaded", CloudOverloadedError),
        ("cloud-deadline", CloudDeadlineError),
        ("request", RequestError),
        ("budget", CloudError),
        ("internal", CloudError),
        ("no such code", CloudError),
    ],
)
def test_a_failure_is_the_clouds_word_and_never_an_error_of_ours(code, kind):
    def script(raws, _):
        for chunk in _chunks(raws):
            yield _honest(chunk, logits=b"", failure=Failure(code=code, message="because\nof \x1b[1mthis"))

    with Cloud(script) as cloud, _session(cloud) as transport:
        error = transport.submit("predict", _bits(1), deadline_s=DEADLINE_S).exception()
        assert type(error) is kind
        assert "\n" not in str(error)
        assert "\x1b" not in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        [],
        [NamedTensor(name="y", tensor=TensorMessage(dtype=9, dims=[2**40], data=b""))],
        [NamedTensor(name="y", tensor=TensorMessage(dtype=2, dims=[1], data=b"1"))],
        [NamedTensor(name="z", tensor=TensorMessage(dtype=9, dims=[1], data=b"1234"))],
        list(encode_named({"y": torch.zeros(2, 2)})),
    ],
)
def test_exchange_answers_that_do_not_match_the_schema_fail_alone(answer):
    def script(raws, _):
        for i, raw in enumerate(raws):
            request = ExchangeRequest.FromString(raw)
            tensors = answer if i == 0 else encode_named({"y": torch.ones(1)})
            yield ExchangeResponse(answers=[ExchangeAnswer(request_id=request.request_id, tensors=tensors)])

    schema = OperationSchema(name="op")
    schema.outputs.add(name="y", dtype=9).axes.add(name="n")
    greeting = ExchangeResponse(
        welcome=Welcome(protocol_version=1, max_message_bytes=4096, operations=[schema])
    )
    with Cloud(script, greeting=greeting) as cloud, _session(cloud) as transport:
        wrong, right = (
            transport.submit("op", {"x": torch.zeros(1)}, deadline_s=DEADLINE_S) for _ in range(2)
        )
        with pytest.raises(CloudAnswerError):
            wrong.result()
        assert right.result().tensors["y"].item() == 1
        with pytest.raises(RequestError, match="the cloud takes at most 4096"):
            transport.submit("op", {"x": torch.zeros(2000)}, deadline_s=DEADLINE_S).result()


def test_a_flood_of_requests_to_a_server_that_reads_nothing_ends_with_the_deadline():
    def script(raws, context):
        held.wait(20)
        yield from ()

    held = threading.Event()
    with Cloud(script) as cloud, _session(cloud) as transport:
        futures = [transport.submit("predict", _bits(1, 64), deadline_s=0.5) for _ in range(2000)]
        assert not wait(futures, timeout=10).not_done
        assert {type(future.exception()) for future in futures} == {CloudDeadlineError}
        held.set()


def test_a_draining_server_is_sent_no_more():
    first = threading.Event()

    def script(raws, _):
        chunks = _chunks(raws)
        if not first.is_set():
            first.set()
            held = next(chunks)
            yield PredictStreamResponse(draining=True)
            assert list(chunks) == []  # the client has closed its side
            yield _honest(held)
            return
        for chunk in chunks:
            yield _honest(chunk)

    with Cloud(script) as cloud, _session(cloud) as transport:
        assert _right(transport.submit("predict", _bits(1), deadline_s=DEADLINE_S), 1)
        assert _right(transport.submit("predict", _bits(2), deadline_s=DEADLINE_S), 2)
        assert len(cloud.hellos) == 2


def test_requests_after_a_refused_connection_fail_at_once_until_the_back_off_has_passed():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with GrpcTransport(address, Binding(), payload_bytes=B) as transport:
            futures = []
            for _ in range(200):
                futures.append(transport.submit("predict", _bits(1), deadline_s=DEADLINE_S))
                assert isinstance(futures[-1].exception(timeout=5), CloudUnavailableError)
            assert transport.handshake_bytes == (0, 0)


def test_a_server_without_our_services_is_of_another_version():
    server = grpc.server(ThreadPoolExecutor(2))
    address = "127.0.0.1:{}".format(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    try:
        with pytest.raises(CloudMismatchError):
            list_models(address)
        with pytest.raises(CloudMismatchError):
            fetch_manifest(address)
        with GrpcTransport(address, Binding(), payload_bytes=B) as transport:
            with pytest.raises(CloudMismatchError):
                transport.submit("predict", _bits(1), deadline_s=DEADLINE_S).result()
        with Client(toy_bundle(), cloud=address) as client:
            assert not client.predict(torch.zeros(1, 1, 1, 16)).used_cloud
    finally:
        server.stop(None).wait()
