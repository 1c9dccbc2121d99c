"""`delta bench latency` and `scale`, on the embedded network: every method, over real processes and sockets."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from delta.bench.contenders import bench_methods
from delta.errors import ConfigError, DeltaError, ModelError, UnknownMethodError
from delta.methods.base import COST_FIELDS
from delta.methods.registry import method_class
from tests.commands import fails

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, padding_mode="reflect")
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(width, 8, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))
"""
QUICK = ("--batch", "2", "--rounds", "3", "--seconds", "0.1")
DELTA_STEPS = {"train stage 1", "release and upload", "train interactive"}


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "delta.cli", "bench", "latency", *QUICK, "--enclave", "sgx1-128"]
    command += ["--plots", str(folder), "--json", str(folder / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out.json").read_text()), done, folder


def test_every_method_is_timed_with_every_field(figures):
    assert (figures[0]["kind"], figures[0]["seed"]) == ("bench-latency", 0)
    rows = figures[0]["rows"]
    methods = {row["method"] for row in rows if row["phase"] == "infer"}
    assert methods == set(bench_methods())
    for row in rows:
        assert (row["batch"], row["threads"], row["link"]) == (2, 1, "none")
        assert row["samples"] >= 3
        assert 0 < row["ms_min"] <= row["ms_median"] <= row["ms_max"]
        known = [row[name] for name in COST_FIELDS if row[name] is not None]
        assert all(math.isfinite(value) and value >= 0 for value in known)
        assert len(known) == len(COST_FIELDS) or row["phase"] in {*DELTA_STEPS, "round trip"}
        if row["phase"] == "infer":
            assert (row["bytes_up"] > 0) == method_class(row["method"]).facts.offloads
        if row["phase"] not in ("round trip", "release and upload"):
            assert row["speedup_vs_private_only"] > 0  # whatever the network, its own baseline ran
    ways = {row["phase"] for row in rows if row["method"] == "delta"}
    assert ways == {"infer", *DELTA_STEPS}
    for method in methods - {"delta"}:
        trained = any(row["method"] == method and row["phase"] == "train" for row in rows)
        assert trained == method_class(method).facts.trains


def test_ratios_stay_within_a_network(figures):
    rows = figures[0]["rows"]
    assert len({row["network"] for row in rows}) == 2  # one runs encrypted from end to end
    for row in rows:
        if row["method"] == "private-only":
            assert row["speedup_vs_private_only"] == 1.0
    delta = next(row for row in rows if row["method"] == "delta" and row["phase"] == "infer")
    main_only = next(row for row in rows if row["method"] == "main-only" and row["phase"] == "infer")
    assert 0 < main_only["private_macs"] <= delta["private_macs"]  # the budget that Delta came to
    assert delta["speedup_vs_main_only"] == pytest.approx(main_only["ms_median"] / delta["ms_median"])


def test_modelled_figures_stand_apart(figures):
    found, done, _ = figures
    assert all(row["modelled"] for row in found["modelled"])
    assert all("modelled" not in row for row in found["rows"])
    assert all(row["low_ms"] <= row["typical_ms"] <= row["high_ms"] for row in found["modelled"])
    assert "modelled, not measured" in done.stdout


def test_plots_are_drawn(figures):
    drawn = [path.name for path in figures[2].glob("*.png")]
    assert {"latency.png", "bytes.png"} < set(drawn)
    assert any(name.startswith("timeline-") for name in drawn)
    assert all((figures[2] / name).read_bytes().startswith(b"\x89PNG") for name in drawn)


def test_where_the_time_of_delta_went_is_told(figures):
    delta = next(row for row in figures[0]["rows"] if row["method"] == "delta" and row["phase"] == "infer")
    parts = delta["breakdown"]
    assert parts["private"] > 0
    assert parts["transfer"] > 0
    assert parts["wall_over_private"] >= 1
    assert parts["answer"] >= parts["queue"]


def test_a_model_of_the_users_own_is_timed_and_what_cannot_run_it_is_left_out(run, tmp_path, monkeypatch):
    (tmp_path / "mine_to_time.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out.json"
    done = run(
        *("bench", "latency", "--model", "mine_to_time:Net", "--argument", "width=4", "--input", "1x8x8"),
        *(*QUICK, "--no-train", "--epsilon", "none", "--json", out),
    )
    assert done.code == 0, done.err
    found = json.loads(out.read_text())
    assert {row["method"] for row in found["rows"]} >= {"private-only", "cloud-only", "he"}
    assert any(
        name.startswith("slalom, Net") for name in found["skipped"]
    )  # no layer that a cloud could run exactly
    assert any(name.startswith("dp-input") for name in found["skipped"])  # without an ε
    assert "is left out" in done.err


def test_scale_over_clients_runs_them_at_once(run, tmp_path):
    out = tmp_path / "scale.json"
    done = run(
        *(
            "bench",
            "scale",
            "--axis",
            "clients",
            "--values",
            "1,2",
            "--methods",
            "cloud-only",
            "--batch",
            "2",
        ),
        *("--size", "16", "--rounds", "3", "--seconds", "0.1", "--json", out),
    )
    assert done.code == 0, done.err
    figures = json.loads(out.read_text())
    assert figures["kind"] == "bench-scale"
    rows = [row for row in figures["rows"] if row["method"] == "cloud-only"]
    assert [row["clients"] for row in rows] == [1, 2]
    assert rows[1]["samples"] == 2 * rows[0]["samples"]
    assert rows[1]["private_cores"] is None


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("latency", "--methods", "slalum"), UnknownMethodError, "unknown method 'slalum'"),
        (("latency", "--methods", ","), ConfigError, "names no method"),
        (("latency", "--threads", "0"), ConfigError, "--threads '0'"),
        (("latency", "--batch", "x"), ConfigError, "--batch 'x'"),
        (("latency", "--link", "fast"), ConfigError, "--link 'fast' is no link"),
        (("latency", "--link", "0:5"), ConfigError, "is no link"),
        (("latency", "--enclave", "sgx9"), ConfigError, "--enclave: "),
        (("latency", "--input", "28x28"), ConfigError, "28x28"),
        (("latency", "--model", "resnet19"), ModelError, "resnet19"),
        (("latency", "--device", "cuda:97"), ConfigError, "cuda:97"),
        (("latency", "--threads", "999"), ConfigError, "999 threads"),
        (("latency", "--epsilon", "-1", "--methods", "delta"), ConfigError, "--epsilon '-1'"),
        (("latency", "--accuracy", "x.jsonl"), ConfigError, "--plots"),
        (("scale", "--values", "1,2"), ConfigError, "--axis"),
    ],
)
def test_bad_input_is_refused_in_one_line(run, arguments, error: type[DeltaError], text):
    fails(run("bench", *arguments), error, text)
