"""The private path's figures are there and consistent; times themselves are never tested."""

import torch

from delta.bench.micro_private_path import measure_private_path, measure_runtimes, usable_runtimes
from delta.models.runtime import RUNTIMES, STATED_ERROR

PARTS = (
    "backbone",
    "backbone_and_message",
    "one_pass",
    "digests",
    "bounding",
    "noise",
    "bits",
    "names",
    "main_2M",
)


def test_parts_of_the_private_path():
    threads = torch.get_num_threads()
    figures = measure_private_path(rounds=2, warmup=0, batch=9)
    assert torch.get_num_threads() == threads
    assert set(figures) == {"release", *PARTS}
    for row in figures.values():
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
    for name in PARTS:
        assert 0 < figures[name]["of_release_min"] <= figures[name]["of_release"]
    assert figures["one_pass"]["speedup"] > 0


def test_runtimes_of_a_main_model():
    figures = measure_runtimes(
        rounds=2,
        warmup=0,
        batches=(2,),
        ranks=(4,),
        budgets=(200_000,),
        runtimes=("eager", "folded"),
        whole=False,
    )
    assert set(figures) == {f"main 0.2M, 4 channels, batch 2, {how}" for how in ("eager", "folded")}
    eager, folded = figures.values()
    assert (eager["speedup"], eager["error"]) == (1.0, 0.0)
    assert 0 < folded["error"] <= STATED_ERROR["folded"]


def test_without_a_compiler_the_compiled_runtimes_are_left_out(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert usable_runtimes() == tuple(how for how in RUNTIMES if "compiled" not in how)
