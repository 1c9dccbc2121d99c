"""The stream benchmark runs, and its figures are what it says."""

import pytest
from delta_client.bench_stream import measure_stream
from delta_server.launch import EchoProcess, ServerProcess

from delta.bench.zero_method import zero_bundle
from delta.bundle.store import save_bundle


def test_a_short_run_gives_every_figure(tmp_path):
    bundle = zero_bundle()
    save_bundle(bundle, tmp_path / "zero")
    with (
        ServerProcess.start(tmp_path / "zero", plugins=["delta.bench.zero_method"], threads=1) as server,
        EchoProcess.launch() as echo,
    ):
        found = measure_stream(
            server.address,
            echo.address,
            bundle.manifest.binding,
            records=(1, 8),
            in_flight=(1, 8),
            rounds=1,
            seconds=0.05,
        )
    assert [(row["records_per_message"], row["in_flight"]) for row in found["rows"]] == [
        (1, 1),
        (1, 8),
        (8, 1),
        (8, 8),
    ]
    for row in found["rows"]:
        for name in ("callback", "blocking"):
            assert row[name]["ratio"] == pytest.approx(row[name]["median"] / row["echo"]["median"])
            assert 0 < row[name]["min"] <= row[name]["median"] <= row[name]["max"]
    assert 128 < found["bytes_per_record"]["up"] <= 141
    assert 40 < found["bytes_per_record"]["down"] < 60
