"""The shaped link takes at least what its bandwidth and delay say: lower bounds only."""

import threading
import time

import pytest
import torch

from delta.bench.zero_method import ZeroHalf
from delta.errors import ConfigError
from delta.transport.inprocess import InProcessTransport
from delta.transport.shaped import ShapedTransport
from delta.transport.timer import TimerThread


def _session(**link):
    return ShapedTransport(InProcessTransport(ZeroHalf(payload_bytes=1000, classes=2)), **link)


def _seconds(transport, count):
    bits = torch.zeros(count, 1000, dtype=torch.uint8)
    start = time.monotonic()
    answer = transport.submit("predict", {"bits": bits}, deadline_s=30).result()
    return time.monotonic() - start, answer


def test_a_known_transfer_takes_its_time():
    with _session(bandwidth_mbps=8, delay_ms=20) as transport:  # 10⁶ bytes per second
        took, answer = _seconds(transport, 100)
    assert took >= (answer.bytes_up + answer.bytes_down) / 1e6 + 0.04


def test_the_delay_is_paid_in_each_direction():
    with _session(bandwidth_mbps=1e6, delay_ms=50) as transport:
        assert _seconds(transport, 1)[0] >= 0.1


def test_messages_leave_one_after_the_other():
    bits = torch.zeros(20, 1000, dtype=torch.uint8)
    with _session(bandwidth_mbps=8, delay_ms=0) as transport:
        start = time.monotonic()
        futures = [transport.submit("predict", {"bits": bits}, deadline_s=30) for _ in range(5)]
        sizes = [future.result().bytes_up for future in futures]
        assert time.monotonic() - start >= sum(sizes) / 1e6


@pytest.mark.parametrize(
    ("bandwidth", "delay"), [(0, 1), (-1, 1), (1, -1), (float("nan"), 1), (1, float("nan"))]
)
def test_a_link_that_cannot_be_is_refused(bandwidth, delay):
    with pytest.raises(ConfigError):
        ShapedTransport(
            InProcessTransport(ZeroHalf(payload_bytes=1, classes=2)), bandwidth_mbps=bandwidth, delay_ms=delay
        )


def test_timers_fire_in_order_and_not_once_cancelled_or_closed():
    fired, done = [], threading.Event()
    timers = TimerThread(name="delta-test-timers")
    now = time.monotonic()
    timers.call_at(now + 0.03, lambda: (fired.append(3), done.set()))
    timers.call_at(now + 0.01, lambda: fired.append(1))
    timers.call_at(now + 0.02, lambda: fired.append(2)).cancel()
    assert done.wait(10)
    assert fired == [1, 3]
    timers.call_at(time.monotonic() + 60, lambda: fired.append(4))
    timers.close()
    timers.close()
    timers.call_at(0.0, lambda: fired.append(5))
    assert fired == [1, 3]
