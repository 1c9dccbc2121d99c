"""The batcher: joins what waits, never waits when idle, and keeps trouble to the request that made it."""

from __future__ import annotations

import asyncio
import time

import pytest
import torch
from delta_server.batcher import Batcher, Job
from delta_server.forms import Named, Packed
from delta_server.models import host_part
from delta_server.quick import QuickCalls

from delta.errors import CloudDeadlineError, CloudOverloadedError, InternalError
from tests.toy_method import POISON, ToyMethod, toy_bundle

B = 16


@pytest.fixture(autouse=True)
def _nothing_is_quick(monkeypatch):
    """A test that holds the half's gate must not hold the event loop with it."""
    monkeypatch.setattr("delta_server.quick._QUICK_MS", 0.0)


class Waiter:
    """An owner that keeps what it is told."""

    def __init__(self):
        self.closed = False
        self.answers = []
        self.told = asyncio.Event()

    def encode(self, job, outcome, cloud_ms):
        self.answers.append((job.sequence, outcome))
        return b"x"

    def deliver(self, answer):
        self.told.set()

    async def outcome(self):
        await asyncio.wait_for(self.told.wait(), 10)
        return self.answers[-1][1]


class Bench:
    """A batcher around a toy half whose gate the test holds."""

    def __init__(self, **settings):
        part = toy_bundle().cloud_part
        self.half = ToyMethod.cloud_half(part, device=torch.device("cpu"))
        self.model = host_part(part, self.half, exchange_message_bytes=2**20, queue_records=4096)
        settings = {"max_batch": 8, "max_delay_s": 0.0, "queue_records": 64, **settings}
        self.batcher = Batcher(asyncio.get_running_loop(), **settings)

    def submit(self, records=1, first=1, *, deadline_s=10.0):
        owner = Waiter()
        self.batcher.submit(
            Job(
                owner=owner,
                model=self.model,
                op="predict",
                payload=bytes([first]) * (records * B),
                form=Packed(B),
                sequence=0,
                records=records,
                deadline=time.monotonic() + deadline_s,
                key="predict",
            )
        )
        return owner

    def accumulate(self, value):
        owner = Waiter()
        self.batcher.submit(
            Job(
                owner=owner,
                model=self.model,
                op="accumulate",
                payload={"x": torch.full((4,), value)},
                form=Named(),
                sequence=0,
                records=1,
                deadline=time.monotonic() + 10,
                key=None,
            )
        )
        return owner

    async def block(self):
        """Keep the compute thread inside a first request until the gate opens."""
        self.half.gate.clear()
        first = self.submit()
        await asyncio.get_running_loop().run_in_executor(None, self.half.started.wait)
        return first


def run(scenario, **settings):
    async def main():
        bench = Bench(**settings)
        try:
            await scenario(bench)
        finally:
            bench.half.gate.set()
            await asyncio.get_running_loop().run_in_executor(None, bench.batcher.close)

    asyncio.run(main())


def _logits(outcome, records):
    return torch.frombuffer(bytearray(outcome), dtype=torch.float32).view(records, 4)


def test_what_waits_while_a_batch_runs_is_joined():
    async def scenario(bench):
        first = await bench.block()
        others = [bench.submit(records=2, first=i) for i in range(6)]
        bench.half.gate.set()
        for i, owner in enumerate(others):
            assert (_logits(await owner.outcome(), 2) == 2 * i).all()
        await first.outcome()
        assert bench.half.batches == [1, 8, 4]
        assert bench.batcher.admitted == 0

    run(scenario)


def test_an_idle_batcher_never_waits():
    async def scenario(bench):
        owner = bench.submit()
        await asyncio.wait_for(owner.outcome(), 5)  # the delay is 100 s

    run(scenario, max_delay_s=100.0)


def test_a_busy_batcher_holds_back_until_the_batch_is_full():
    async def scenario(bench):
        await bench.block()
        waiting = bench.submit(records=4)
        bench.half.gate.set()
        filler = bench.submit(records=4)
        await asyncio.wait_for(waiting.outcome(), 5)
        await filler.outcome()
        assert bench.half.batches == [1, 8]

    run(scenario, max_delay_s=100.0)


def test_a_message_larger_than_a_batch_runs_in_pieces():
    async def scenario(bench):
        owner = bench.submit(records=20, first=3)
        assert (_logits(await owner.outcome(), 20) == 6).all()
        assert bench.half.batches == [8, 8, 4]

    run(scenario)


def test_poison_fails_alone():
    async def scenario(bench):
        await bench.block()
        owners = [bench.submit(first=value) for value in (1, POISON, 3)]
        bench.half.gate.set()
        outcomes = [await owner.outcome() for owner in owners]
        assert isinstance(outcomes[1], InternalError)
        assert "255" not in str(outcomes[1])
        assert (_logits(outcomes[0], 1) == 2).all()
        assert (_logits(outcomes[2], 1) == 6).all()

    run(scenario)


def test_the_expired_and_the_abandoned_never_run():
    async def scenario(bench):
        await bench.block()
        late = bench.submit(deadline_s=0.0)
        gone = bench.submit()
        gone.closed = True
        live = bench.submit(first=5)
        bench.half.gate.set()
        assert isinstance(await late.outcome(), CloudDeadlineError)
        assert (_logits(await live.outcome(), 1) == 10).all()
        assert gone.answers == []
        assert bench.half.batches == [1, 1]
        assert bench.batcher.admitted == 0

    run(scenario)


def test_the_queue_is_bounded_and_its_slots_come_back():
    async def scenario(bench):
        first = await bench.block()
        kept = bench.submit(records=63)
        with pytest.raises(CloudOverloadedError, match="64 of 64"):
            bench.submit()
        bench.half.gate.set()
        await first.outcome()
        await kept.outcome()
        assert bench.batcher.admitted == 0
        await bench.submit(records=64).outcome()

    run(scenario)


def test_operations_that_are_not_batchable_keep_their_place():
    async def scenario(bench):
        await bench.block()
        before = bench.submit(first=1)
        middle = bench.accumulate(1.0)
        after = bench.submit(first=2)
        bench.half.gate.set()
        for owner in (before, middle, after):
            await owner.outcome()
        assert bench.half.batches == [1, 1, 1]  # nothing overtook the operation between them

    run(scenario)


def test_closing_finishes_what_was_admitted():
    async def scenario(bench):
        await bench.block()
        owners = [bench.submit(first=i) for i in range(20)]
        bench.half.gate.set()
        await asyncio.get_running_loop().run_in_executor(None, bench.batcher.close)
        for i, owner in enumerate(owners):
            assert (_logits(await owner.outcome(), 1) == 2 * i).all()
        bench.batcher = Batcher(
            asyncio.get_running_loop(), max_batch=1, max_delay_s=0.0, queue_records=1
        )  # for the harness to close

    run(scenario)


def test_a_quick_call_runs_where_it_arrives(monkeypatch):
    monkeypatch.setattr("delta_server.quick._QUICK_MS", 1e9)

    async def scenario(bench):
        await bench.submit(records=2).outcome()
        await bench.submit(records=2).outcome()
        await bench.submit(records=5).outcome()  # over twice as many as were ever seen
        assert bench.half.threads == ["delta-compute", "MainThread", "delta-compute"]
        assert bench.batcher.admitted == 0

    run(scenario)


def test_a_call_that_is_not_quick_never_runs_on_the_event_loop():
    async def scenario(bench):
        for _ in range(3):
            await bench.submit().outcome()
        assert set(bench.half.threads) == {"delta-compute"}

    run(scenario)


def test_a_kind_is_quick_by_its_mean_and_slow_by_one_call(monkeypatch):
    monkeypatch.setattr("delta_server.quick._QUICK_MS", 0.1)
    calls = QuickCalls()
    assert not calls.fits("a", 1)
    for _ in range(30):
        calls.learn("a", 4, 0.02)
    assert calls.fits("a", 8)
    assert not calls.fits("a", 9)
    calls.learn("a", 4, 0.5)  # pre-empted once
    assert calls.fits("a", 4)
    calls.learn("a", 4, 5.0)
    assert not calls.fits("a", 1)
    for _ in range(80):
        calls.learn("a", 4, 0.02)
    assert calls.fits("a", 4)
    calls.learn(None, 4, 0.0)
    assert not calls.fits(None, 1)
