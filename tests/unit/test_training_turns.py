"""Whose job trains next."""

from __future__ import annotations

import asyncio

from delta_server.training.turns import Turns


async def _settle():
    for _ in range(10):
        await asyncio.sleep(0)


class _Jobs:
    """Jobs that hold a place until they are told to end."""

    def __init__(self, places):
        self.turns = Turns(places)
        self.begun: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.ends: dict[str, asyncio.Event] = {}

    async def submit(self, *names):
        for name in names:
            self.ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._run(name))
            await _settle()

    async def _run(self, name):
        async with self.turns.turn(name[0]):
            self.begun.append(name)
            await self.ends[name].wait()

    async def end(self, name):
        self.ends[name].set()
        await _settle()

    async def call_off(self, *names):
        for name in names:
            self.tasks[name].cancel()
        await _settle()

    async def run_out(self):
        """End the job that began first, again and again; the order in which all began."""
        ended = 0
        while ended < len(self.begun):
            await self.end(self.begun[ended])
            ended += 1
        return self.begun


def test_tenants_take_turns_however_many_jobs_one_has():
    async def run():
        jobs = _Jobs(1)
        await jobs.submit("a1", "a2", "a3", "a4", "b1", "c1", "b2")
        return await jobs.run_out()

    assert asyncio.run(run()) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_one_tenants_jobs_come_in_order():
    async def run():
        jobs = _Jobs(1)
        await jobs.submit("a1", "a2", "a3")
        return await jobs.run_out()

    assert asyncio.run(run()) == ["a1", "a2", "a3"]


def test_a_free_place_goes_to_whoever_holds_fewest():
    async def run():
        jobs = _Jobs(3)
        await jobs.submit("a1", "a2", "a3", "a4", "a5", "b1", "b2")
        await jobs.end("a1")  # two of a's go on
        await jobs.end("a2")
        return jobs.begun

    assert asyncio.run(run()) == ["a1", "a2", "a3", "b1", "b2"]


def test_newcomers_do_not_push_in_before_those_who_wait():
    async def run():
        jobs = _Jobs(1)
        await jobs.submit("a1", "b1", "b2")
        await jobs.end("a1")
        await jobs.submit("c1")
        await jobs.end("b1")
        await jobs.submit("d1", "e1")
        await jobs.end("c1")
        return jobs.begun

    assert asyncio.run(run()) == ["a1", "b1", "c1", "b2"]


def test_jobs_that_are_called_off_hold_nothing():
    async def run():
        jobs = _Jobs(1)
        await jobs.submit("a1", "a2", "b1", "c1")
        await jobs.call_off("b1", "a1")  # one that waits, one that trains
        assert jobs.begun == ["a1", "c1"]
        jobs.ends["c1"].set()
        jobs.tasks["a2"].cancel()  # as its turn comes
        await jobs.submit("d1", "d2")
        await jobs.end("d1")
        return jobs.begun

    assert asyncio.run(run()) == ["a1", "c1", "d1", "d2"]
