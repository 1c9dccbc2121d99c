"""One contract for every transport: in this process, behind a link, and over gRPC to another process."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, wait

import pytest
import torch
from delta_client import GrpcTransport

from delta.errors import CloudDeadlineError, CloudError, CloudUnavailableError, RequestError
from delta.transport.inprocess import InProcessTransport
from delta.transport.shaped import ShapedTransport
from tests.toy_method import NAN, POISON, ToyMethod, toy_bundle

DEADLINE_S = 20.0


def _inprocess():
    part = toy_bundle().cloud_part
    half = ToyMethod.cloud_half(part, device=torch.device("cpu"))
    return InProcessTransport(half, binding=part.manifest.binding)


@pytest.fixture(params=["in-process", "shaped", "grpc"])
def transport(request):
    if request.param == "grpc":
        cloud = request.getfixturevalue("toy_cloud")
        made = GrpcTransport(cloud.address, toy_bundle().manifest.binding)
    elif request.param == "shaped":
        made = ShapedTransport(_inprocess(), bandwidth_mbps=1000, delay_ms=1)
    else:
        made = _inprocess()
    with made:
        yield made


def _bits(n, seed=0):
    return torch.randint(0, 200, (n, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def _expected(bits):
    return bits[:, :4].to(torch.float32) * 2


def test_an_answer_has_tensors_and_what_it_cost(transport):
    bits = _bits(3)
    answer = transport.submit("predict", {"bits": bits}, deadline_s=DEADLINE_S).result()
    assert torch.equal(answer.tensors["logits"], _expected(bits))
    assert answer.cloud_ms >= 0
    assert 3 * 16 < answer.bytes_up < 3 * 16 + 16
    assert 3 * 16 < answer.bytes_down < 3 * 16 + 24


def test_the_handshake_is_counted_once_it_was_made(transport):
    assert transport.handshake_bytes == (0, 0)
    for _ in range(2):
        transport.submit("predict", {"bits": _bits(1)}, deadline_s=DEADLINE_S).result()
        up, down = transport.handshake_bytes
        assert 80 < up <= 500
        assert 0 < down < 100


def test_answers_belong_to_their_requests(transport):
    requests = [_bits(1 + i % 5, seed=i) for i in range(300)]
    futures = [transport.submit("predict", {"bits": bits}, deadline_s=DEADLINE_S) for bits in requests]
    for bits, future in zip(requests, futures, strict=True):
        assert torch.equal(future.result().tensors["logits"], _expected(bits))


def test_several_threads_may_submit(transport):
    failures = []

    def work(seed):
        for i in range(40):
            bits = _bits(2, seed=1000 * seed + i)
            answer = transport.submit("predict", {"bits": bits}, deadline_s=DEADLINE_S).result()
            if not torch.equal(answer.tensors["logits"], _expected(bits)):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_operations_of_the_methods_own_travel_too(transport):
    futures = [
        transport.submit("scale", {"x": torch.full((2, 3), float(i))}, deadline_s=DEADLINE_S)
        for i in range(20)
    ]
    for i, future in enumerate(futures):
        assert torch.equal(future.result().tensors["y"], torch.full((2, 3), 2.0 * i))


def test_operations_that_are_not_batchable_run_in_order(transport):
    ones = torch.ones(4)
    start = (
        transport.submit("accumulate", {"x": torch.zeros(4)}, deadline_s=DEADLINE_S).result().tensors["total"]
    )
    futures = [transport.submit("accumulate", {"x": ones}, deadline_s=DEADLINE_S) for _ in range(20)]
    totals = [future.result().tensors["total"][0].item() - start[0].item() for future in futures]
    assert totals == [float(i + 1) for i in range(20)]


def test_one_bad_request_fails_alone(transport):
    good = _bits(2)
    poison = good.clone()
    poison[0, 0] = POISON
    futures = [transport.submit("predict", {"bits": b}, deadline_s=DEADLINE_S) for b in (good, poison, good)]
    assert torch.equal(futures[0].result().tensors["logits"], _expected(good))
    with pytest.raises(CloudError) as failure:
        futures[1].result()
    assert "255" not in str(failure.value)
    assert torch.equal(futures[2].result().tensors["logits"], _expected(good))


@pytest.mark.parametrize(
    ("op", "tensors"),
    [
        ("no-such-operation", {"x": torch.zeros(1)}),
        ("scale", {"y": torch.zeros(1, 1)}),
        ("scale", {"x": torch.zeros(1, 1, dtype=torch.float64)}),
        ("scale", {"x": torch.zeros(1)}),
        ("accumulate", {"x": torch.zeros(5)}),
        ("scale", {"x": torch.zeros(1, 1, dtype=torch.complex64)}),
    ],
)
def test_what_does_not_match_the_schema_is_refused_with_a_request_error(transport, op, tensors):
    future = transport.submit(op, tensors, deadline_s=DEADLINE_S)
    with pytest.raises(RequestError):
        future.result()
    answer = transport.submit("scale", {"x": torch.ones(1, 1)}, deadline_s=DEADLINE_S).result()
    assert answer.tensors["y"].item() == 2


def test_nan_is_the_methods_affair(transport):
    bits = _bits(2)
    bits[1, 0] = NAN
    logits = transport.submit("predict", {"bits": bits}, deadline_s=DEADLINE_S).result().tensors["logits"]
    assert logits.isnan().any(1).tolist() == [False, True]


def test_a_late_request_fails_and_the_session_lives_on(transport):
    transport.submit("scale", {"x": torch.ones(1, 1)}, deadline_s=DEADLINE_S).result()
    slow = transport.submit("pause", {"seconds": torch.tensor(0.5, dtype=torch.float64)}, deadline_s=0.05)
    with pytest.raises(CloudDeadlineError):
        slow.result()
    bits = _bits(2)
    answer = transport.submit("predict", {"bits": bits}, deadline_s=DEADLINE_S).result()
    assert torch.equal(answer.tensors["logits"], _expected(bits))


@pytest.mark.parametrize("deadline_s", [0.0, -1.0])
def test_a_deadline_that_has_passed_fails_at_once(transport, deadline_s):
    with pytest.raises(CloudDeadlineError):
        transport.submit("predict", {"bits": _bits(1)}, deadline_s=deadline_s).result(timeout=1)


def test_a_cancelled_request_leaves_the_session_usable(transport):
    busy = transport.submit(
        "pause", {"seconds": torch.tensor(0.1, dtype=torch.float64)}, deadline_s=DEADLINE_S
    )
    cancelled = transport.submit("predict", {"bits": _bits(1)}, deadline_s=DEADLINE_S)
    assert cancelled.cancel()
    busy.result()
    with pytest.raises(CancelledError):
        cancelled.result()
    answer = transport.submit("predict", {"bits": _bits(1)}, deadline_s=DEADLINE_S).result()
    assert torch.equal(answer.tensors["logits"], _expected(_bits(1)))


def test_inputs_may_change_after_submit(transport):
    busy = transport.submit(
        "pause", {"seconds": torch.tensor(0.1, dtype=torch.float64)}, deadline_s=DEADLINE_S
    )
    bits = _bits(2)
    before = bits.clone()
    future = transport.submit("predict", {"bits": bits}, deadline_s=DEADLINE_S)
    bits.zero_()
    busy.result()
    assert torch.equal(future.result().tensors["logits"], _expected(before))


def test_close_fails_what_is_pending_and_is_idempotent(transport):
    pause = {"seconds": torch.tensor(0.3, dtype=torch.float64)}
    futures = [transport.submit("pause", pause, deadline_s=DEADLINE_S)]
    futures += [transport.submit("predict", {"bits": _bits(1)}, deadline_s=DEADLINE_S) for _ in range(3)]
    transport.close()
    transport.close()
    assert not wait(futures, timeout=5).not_done
    for future in futures[1:]:
        assert isinstance(future.exception(), (CloudUnavailableError, type(None)))
    with pytest.raises(CloudUnavailableError):
        transport.submit("predict", {"bits": _bits(1)}, deadline_s=DEADLINE_S).result(timeout=1)


def test_no_thread_outlives_the_session_but_the_one_loop_of_all_sessions(transport):
    transport.submit("predict", {"bits": _bits(1)}, deadline_s=DEADLINE_S).result()
    transport.close()
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("delta-")]
    assert left in ([], ["delta-client"])
