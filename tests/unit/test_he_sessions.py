"""Keys of many clients in one cloud: strangers and crowds do not shut out those who were there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from delta.errors import CloudOverloadedError
from delta.methods.he.cloud import EVALUATE, KEYS, HeCloud
from delta.methods.he.keys import Keys, new_session
from delta.methods.he.method import Encrypted
from delta.methods.he.sessions import Sessions
from delta.methods.schema import run_operation
from delta.transport.inprocess import InProcessTransport
from tests.clouds import Recorded, ScriptedCloud, honest

CPU = torch.device("cpu")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def sessions(clock, *, needed=2, key_bytes=1, most=2, most_unfinished=3):
    return Sessions(
        needed, key_bytes=key_bytes, most=most, most_unfinished=most_unfinished, in_use_s=5.0, clock=clock
    )


def completed(table, name):
    assert table.add(name, 1, "a") == 1
    assert table.add(name, 2, "b") == 0


def test_unfinished_sessions_do_not_drive_out_complete_ones(clock):
    table = sessions(clock)
    completed(table, b"one")
    for number in range(20):
        clock.now += 2
        table.add(b"stranger %d" % number, 1, "a")
    assert table.counts == (1, 3)
    assert table.keys_of(b"one") == {1: "a", 2: "b"}
    assert table.keys_of(b"stranger 19") is None


def test_a_session_under_way_outlives_a_crowd_of_newcomers(clock):
    table = sessions(clock)
    assert table.add(b"one", 1, "a") == 1
    for number in range(2):
        table.add(b"stranger %d" % number, 1, "a")
    with pytest.raises(CloudOverloadedError, match="3 clients are sending"):
        table.add(b"late", 1, "a")
    assert table.add(b"one", 2, "b") == 0


def test_the_same_key_again_keeps_no_place(clock):
    table = sessions(clock, needed=3)
    for name in (b"a", b"b", b"c"):
        table.add(name, 1, "key")
    table.add(b"b", 2, "key")
    clock.now = 2
    table.add(b"a", 1, "key")
    table.add(b"late", 1, "key")
    # The first of those with one key is gone and begins anew in the other's place; who had two has both.
    assert table.add(b"a", 2, "key") == 2
    assert table.add(b"b", 3, "key") == 0


def test_unfinished_sessions_expire(clock):
    table = sessions(clock)
    table.add(b"a", 1, "key")
    table.add(b"b", 1, "key")
    clock.now = 60
    table.add(b"c", 1, "key")
    assert table.counts == (0, 1)


def test_complete_sessions_in_use_do_not_make_room(clock):
    table = sessions(clock)
    completed(table, b"one")
    completed(table, b"two")
    clock.now = 4
    table.used(b"one")
    with pytest.raises(CloudOverloadedError, match="keys of 2 clients"):
        table.add(b"three", 1, "a")
    assert table.counts == (2, 0)
    clock.now = 6
    completed(table, b"three")
    assert table.keys_of(b"two") is None
    assert table.keys_of(b"one") is not None
    clock.now = 8
    with pytest.raises(CloudOverloadedError):
        table.add(b"four", 1, "a")


def test_who_finishes_when_all_room_is_taken_is_refused_and_may_come_again(clock):
    table = sessions(clock)
    for name in (b"one", b"two", b"three"):
        table.add(name, 1, "a")
    table.add(b"one", 2, "b")
    table.add(b"two", 2, "b")
    with pytest.raises(CloudOverloadedError):
        table.add(b"three", 2, "b")
    assert table.counts == (2, 1)
    clock.now = 5
    assert table.add(b"three", 1, "a") == 0


def test_large_keys_mean_fewer_sessions(clock):
    table = sessions(clock, key_bytes=2**29, most=8, most_unfinished=8)
    completed(table, b"one")
    with pytest.raises(CloudOverloadedError, match="keys of 1 clients"):
        table.add(b"two", 1, "a")
    clock.now = 5
    table.add(b"two", 1, "a")
    with pytest.raises(CloudOverloadedError, match="1 clients are sending"):
        table.add(b"three", 1, "a")
    completed(sessions(clock, key_bytes=2**40), b"one")


def test_a_circuit_without_rotations_needs_no_keys(clock):
    assert sessions(clock, needed=0).keys_of(b"anyone") == {}


@pytest.fixture(scope="module")
def last(trained):
    return Encrypted.bundle_of(trained.whole, mode="last-layer")


def test_a_strangers_small_messages_shut_nobody_out(trained, last):
    half = HeCloud(last.cloud_part)
    one = Keys(half._scheme, half._circuit).public[0]
    serve = honest(half)

    def raced(number, op, tensors):
        outcome = serve(number, op, tensors)
        if op == KEYS:
            for _ in range(8):
                run_operation(half, KEYS, {"session": new_session(), **one})
        return outcome

    with ScriptedCloud(raced) as cloud:
        method = Encrypted.from_bundle(last)
        method.prepare(cloud, deadline_s=30)
        first, second = (method.infer(trained.x[:1]) for _ in range(2))
    assert (first.used_cloud, second.used_cloud) == (True, True), first.detail
    assert second.extras["setup_bytes"] == (0, 0)


def test_a_cloud_in_use_refuses_one_more_client_and_keeps_the_others(trained, last):
    half = HeCloud(last.cloud_part, sessions=2, in_use_s=1e6)
    methods = [Encrypted.from_bundle(last) for _ in range(3)]
    with Recorded(InProcessTransport(half)) as transport:
        for method in methods:
            method.prepare(transport, deadline_s=30)
        found = [method.infer(trained.x[:1]) for method in methods + methods[:2]]
    assert [prediction.reason for prediction in found] == ["", "", "overloaded", "", ""]
    assert found[2].cost.round_trips == 1
    assert [sent.op for sent in transport.transcript[-2:]] == [EVALUATE] * 2
    torch.testing.assert_close(found[2].logits, trained.whole.module(trained.x[:1]))


@pytest.mark.parametrize("times", [1, 5])
def test_a_cloud_that_drops_keys_on_their_way_gets_them_once_more(trained, last, times):
    half = HeCloud(last.cloud_part)
    serve = honest(half)
    last_key = len(half._needed) - 1
    dropped = []

    def dropping(number, op, tensors):
        outcome = serve(number, op, tensors)
        fresh = sum(sent.op == KEYS for sent in cloud.transcript)
        if op == KEYS and fresh % (last_key + 1) == 0 and len(dropped) < times:
            dropped.append(number)
            half._sessions._complete.clear()
            return replace(outcome, tensors={"missing": torch.tensor([last_key])})
        return outcome

    with ScriptedCloud(dropping) as cloud:
        method = Encrypted.from_bundle(last)
        method.prepare(cloud, deadline_s=30)
        prediction = method.infer(trained.x[:1])
        keys = sum(sent.op == KEYS for sent in cloud.transcript)
    assert keys == 2 * (last_key + 1)
    assert prediction.used_cloud == (times == 1), prediction.detail
    assert prediction.reason == ("" if times == 1 else "mismatch")
    assert prediction.cost.round_trips == len(cloud.transcript)
