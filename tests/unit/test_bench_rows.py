"""Benchmark rows: medians, and ratios within one network, phase and batch alone."""

from __future__ import annotations

import pytest

from delta.bench.contenders import Contender
from delta.bench.latency import cores_of
from delta.bench.rows import rows_of
from delta.bench.timing import Timed, time_in_turn
from delta.methods.base import COST_FIELDS
from tests.toy_method import toy_bundle


def _timed(key, phase, batch, *ms, **cost):
    fields = {**dict.fromkeys(COST_FIELDS, 0.0), **cost}
    return Timed(key, phase, batch, [{"ms": value, **fields} for value in ms])


METHODS = {
    "p": ("private-only", "net"),
    "q": ("private-only", "other net"),
    "d": ("delta", "net"),
    "c": ("cloud-only", "net"),
    "small": ("main-only", "net"),
    "large": ("main-only", "net"),
}


def _rows(*timed):
    known = {key: Contender(key, method, network, toy_bundle()) for key, (method, network) in METHODS.items()}
    found = rows_of(timed, contenders=known, threads=1, link="none")
    return {(row["method"], row["network"], row["phase"], row["batch"]): row for row in found}


def test_a_row_holds_median_and_range_and_the_medians_of_the_cost():
    one = _timed("d", "infer", 8, 3.0, 1.0, 2.0)
    for sample, up in zip(one.samples, (10, 30, 20), strict=True):
        sample.update(bytes_up=up, extras={"precompute_ms": up / 2})
    row = _rows(one)["delta", "net", "infer", 8]
    assert (row["ms_median"], row["ms_min"], row["ms_max"], row["samples"]) == (2.0, 1.0, 3.0, 3)
    assert row["bytes_up"] == 20
    assert row["extras"] == {"precompute_ms": 10}
    assert row["speedup_vs_private_only"] is None


def test_each_ratio_is_of_the_same_network_batch_and_kind_of_phase():
    rows = _rows(
        _timed("p", "infer", 8, 100.0),
        _timed("p", "infer", 1, 10.0),
        _timed("p", "train", 8, 300.0),
        _timed("q", "infer", 8, 7.0),
        _timed("d", "infer", 8, 4.0),
        _timed("d", "infer", 1, 5.0),
        _timed("d", "train interactive", 8, 6.0),
        _timed("d", "release and upload", 8, 1.0),
    )
    assert rows["delta", "net", "infer", 8]["speedup_vs_private_only"] == 25.0
    assert rows["delta", "net", "infer", 1]["speedup_vs_private_only"] == 2.0
    assert rows["delta", "net", "train interactive", 8]["speedup_vs_private_only"] == 50.0
    assert (
        rows["delta", "net", "release and upload", 8]["speedup_vs_private_only"] is None
    )  # no training step
    assert rows["private-only", "other net", "infer", 8]["speedup_vs_private_only"] == 1.0


def test_main_only_is_the_one_of_the_nearest_private_macs():
    rows = _rows(
        _timed("small", "infer", 8, 1.0, private_macs=10.0),
        _timed("large", "infer", 8, 2.0, private_macs=20.0),
        _timed("d", "infer", 8, 4.0, private_macs=18.0),
        _timed("c", "infer", 8, 4.0, private_macs=9.0),
    )
    row = rows["delta", "net", "infer", 8]
    assert (row["speedup_vs_main_only"], row["main_only_macs"]) == (0.5, 20.0)
    assert rows["cloud-only", "net", "infer", 8]["speedup_vs_main_only"] is None
    alone = _rows(_timed("d", "infer", 8, 4.0, private_macs=15.0))
    assert alone["delta", "net", "infer", 8]["speedup_vs_main_only"] is None


def test_where_the_milliseconds_went_adds_up_and_what_nobody_measured_is_none():
    one = _timed("d", "infer", 8, 10.0, cloud_ms=3.0)
    events = [
        ("private", "release", 0, 2),
        ("private", "wait", 2, 9),
        ("private", "fuse", 9, 10),
        ("cloud", "c", 2, 9),
    ]
    one.samples[0]["timeline"] = [
        {"lane": lane, "name": name, "start_ms": start, "end_ms": end} for lane, name, start, end in events
    ]
    found = rows_of(
        [one, _timed("d-way", "round trip", 8, 1.0, cloud_macs=None)],
        contenders={
            "d": Contender("d", "delta", "net", toy_bundle()),
            "d-way": Contender("d-way", "bench-zero", "net", toy_bundle()),
        },
        threads=1,
        link="none",
    )
    assert found[0]["breakdown"] == {
        "private": 3,
        "wait": 7,
        "answer": 7,
        "cloud": 3.0,
        "transfer": 1.0,
        "queue": 3.0,
        "wall_over_private": 10 / 3,
    }
    assert found[1]["cloud_macs"] is None


class _Counted:
    def __init__(self, name, log, ms):
        self.name, self.log, self.ms = name, log, ms

    def run(self):
        self.log.append(self.name)
        return {"ms": self.ms}


def test_cases_take_turns_and_a_spent_one_sits_out_after_three():
    log, begun = [], []
    cases = [(Timed(name, "infer", 1), _Counted(name, log, 2e3)) for name in "ab"]
    found = time_in_turn(cases, rounds=5, seconds=0.0, warm_up=1, ready=lambda: begun.append(len(log)))
    assert log == ["a", "b", "a", "a", "b", "b", "a", "b", "a", "b"]  # twice until it is known to be long
    assert begun == [2]
    assert [len(one.samples) for one in found] == [3, 3]


def test_a_short_case_counts_once_it_is_warm():
    log = []
    timed = Timed("a", "infer", 1)
    time_in_turn([(timed, _Counted("a", log, 1.0))], rounds=4, seconds=60.0, warm_up=0)
    assert (len(log), len(timed.samples)) == (8, 4)


@pytest.mark.parametrize(
    ("available", "threads", "private", "cloud"),
    [
        ([0, 1], (1,), {1: (0,)}, (1,)),
        ([0, 1], (1, 2), {1: (0,), 2: None}, (1,)),
        ([0], (1,), {1: None}, None),
        ([2, 3, 4, 5, 6], (1, 4), {1: (2,), 4: (2, 3, 4, 5)}, (6,)),
    ],
)
def test_the_private_side_and_the_cloud_share_no_core(available, threads, private, cloud):
    assert cores_of(available, threads) == (private, cloud)
