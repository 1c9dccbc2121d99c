"""`delta frontier` and `delta choose` on a sweep of two points, as small as it gets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from delta.cli.app import main
from delta.errors import CheckpointError, ConfigError, InputError
from tests.commands import Outcome, fails
from tests.tiny_runs import figures_of, write_config

Run = Callable[..., Outcome]
ATTACK = {"epochs": 1, "width": 8, "classifier_epochs": 1, "candidates": 40, "victims": 30}
TIMING = {"batch": 4, "rounds": 3, "warmup": 1}


def write_sweep(folder: Path, **fields: object) -> Path:
    write_config(folder / "run.yaml")
    sweep = {"base": "run.yaml", "name": "tiny", "grid": {"noise": ["none", {"epsilon": 8}]}}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**sweep, "attack": ATTACK, "timing": TIMING, **fields}, sort_keys=False))
    return path


def stored(out: Path, name: str = "point.json") -> dict[Path, tuple[bytes, int]]:
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(out.glob(f"points/*/{name}"))
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `sweep.yaml` and its finished sweep in `out`; nobody may change it."""
    folder = tmp_path_factory.mktemp("frontier")
    with pytest.raises(SystemExit) as ended:
        main(["frontier", str(write_sweep(folder)), "--out", str(folder / "out")])
    assert ended.value.code == 0
    return folder


@pytest.fixture
def swept(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "swept")
    return tmp_path / "swept"


def test_every_point_is_measured_stored_and_found_again(run: Run, swept: Path) -> None:
    out = swept / "out"
    figures = figures_of(out / "frontier.json")
    assert (figures["kind"], figures["tee"], figures["failed"]) == ("frontier", "simulated", [])
    clean, noisy = figures["points"]
    assert clean["settings"]["noise"] == "none"
    assert clean["epsilon"] is clean["mu"] is None
    assert noisy["epsilon"] == pytest.approx(8, abs=1e-6)
    assert noisy["mu"] == pytest.approx(1.67, abs=0.01)
    for one in figures["points"]:
        assert set(one["accuracy"]) == {
            "delta", "main_alone", "main_only", "random_bits", "noiseless_bits", "private_only",
        }  # fmt: skip
        assert all(0 <= value <= 100 for value in one["accuracy"].values())
        assert -1 <= one["ssim"] <= 1
        assert -1 <= one["ssim_floor"] <= 1
        assert one["private_ms"] > 0
        assert one["private_only_ms"] > 0
        assert one["speedup"] > 0
        assert one["bytes_per_record"] > 16 * 16 / 8  # packed bits, and what is around them
        assert one["matching_candidates"] == 40
        assert 0 <= one["membership_auc"] <= 1
        assert 0 <= one["label_leak"] <= 100
        assert one["private_macs"] > 0
        assert one["cloud_macs"] > 0
        assert one["pareto"] is (one["dominated_by"] is None)
        assert one["seeds"] == [0]
    assert clean["accuracy"]["noiseless_bits"] == clean["accuracy"]["delta"]  # one and the same fit
    assert clean["accuracy"]["main_only"] == noisy["accuracy"]["main_only"]
    assert {one["method"] for one in figures["baselines"]} == {"main-only", "private-only"}
    assert len(figures["baselines"]) == 2

    before, times = stored(out), stored(out, "timing.json")
    again = run("frontier", swept / "sweep.yaml", "--out", out, "--json", "-")
    found = json.loads(again.out)  # nothing else is on standard output
    assert found.pop("sweep")["base"] == str(swept / "run.yaml")
    assert found == {key: value for key, value in figures.items() if key != "sweep"}
    assert (stored(out), stored(out, "timing.json")) == (before, times)


def test_a_changed_grid_keeps_what_is_there_and_a_damaged_file_is_measured_again(
    run: Run, swept: Path
) -> None:
    out = swept / "out"
    before = stored(out)
    first = figures_of(out / "frontier.json")["points"]
    broken = next(path for path, (data, _) in before.items() if b'"noise": "none"' in data)
    broken.write_bytes(before[broken][0][:-40])
    write_sweep(swept, grid={"noise": ["none", {"epsilon": 8}], "fusion": ["calibrated", "sum"]})
    ended = run("frontier", swept / "sweep.yaml", "--out", out, "--only", "1,3", "--plots", swept / "plots")
    assert ended.code == 0, ended.err
    assert "is damaged; it is measured again" in ended.err
    figures = figures_of(out / "frontier.json")["points"]
    assert [one["point"] for one in figures] == [1, 3]
    assert [one["accuracy"] for one in figures] == [one["accuracy"] for one in first]
    assert figures[0]["ssim"] == first[0]["ssim"]
    kept = {path: entry for path, entry in before.items() if path != broken}
    assert kept.items() <= stored(out).items()
    assert {path.name for path in (swept / "plots").iterdir()} == {
        "frontier-leakage.png", "frontier-budgets.png",
    }  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (swept / "plots").iterdir())

    frontier = out / "frontier.json"
    chosen = run(
        "choose", frontier, "--max-ssim", "1", "--min-accuracy", "0", "--json", swept / "choice.json"
    )
    assert chosen.code == 0, chosen.err
    assert figures_of(swept / "choice.json")["feasible"] is True
    none = run("choose", frontier, "--min-accuracy", "100", "--max-private-ms", "0")
    assert none.code == 10
    assert none.out.startswith("Nothing keeps every limit")
    fails(run("choose", frontier), ConfigError, "no limit", "--max-ssim")
    fails(run("choose", frontier, "--max-ssim", "2"), ConfigError, "--max-ssim 2", "0 to 1")
    fails(run("choose", swept / "choice.json", "--max-ssim", "1"), InputError, "'choice'")


@pytest.mark.slow
def test_workers_side_by_side_come_to_the_same_and_a_failing_point_stops_nobody(
    run: Run, swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process that starts takes its threads from here; sums round by their number.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = write_sweep(swept, points=[{"main.max_macs": 10}])
    ended = run("frontier", path, "--out", swept / "other", "--parallel", "2")
    assert ended.code == 1
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "point 3, seed 0: no light main model fits 10 MACs" in errors[0]
    one, other = (figures_of(swept / name / "frontier.json") for name in ("out", "other"))
    assert [entry["point"] for entry in other["failed"]] == [3]
    assert [p["accuracy"] for p in one["points"]] == [p["accuracy"] for p in other["points"]]


def test_bad_sweeps_are_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    path, out = write_sweep(tmp_path), tmp_path / "out"
    fails(run("frontier", tmp_path / "absent.yaml", "--out", out), ConfigError, "cannot be read")
    fails(run("frontier", path, "--out", out, "--only", "7"), ConfigError, "points 1 to 2")
    fails(run("frontier", path, "--out", out, "--gpus", "0", "--device", "cpu"), ConfigError, "--gpus")
    fails(run("frontier", path, "--out", out, "--set", "attack.victims=900"), ConfigError, "attack.victims")
    fails(run("frontier", path, "--out", out, "--set", "data.source=nowhere"), InputError, "nowhere")
    assert not (out / "points").exists()
    from delta.training.folder_lock import folder_lock

    with folder_lock(out):
        fails(run("frontier", path, "--out", out), CheckpointError, "in use")


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [1, 2])
def test_a_killed_sweep_goes_on_to_the_same_figures(tmp_path: Path, parallel: int) -> None:
    write_sweep(tmp_path, seeds=[0, 1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DELTA_CHECKPOINT_STEPS": "1"}
    command = [sys.executable, "-m", "delta.cli", "frontier", tmp_path / "sweep.yaml"]

    def start(out: Path, **how: object) -> subprocess.Popen[str]:
        call = [*map(str, command), "--out", str(out), "--parallel", str(parallel)]
        return subprocess.Popen(
            call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **how
        )

    with start(tmp_path / "whole") as whole:
        assert whole.stdout is not None
        whole.stdout.read()
    assert whole.returncode == 0

    with start(tmp_path / "cut") as cut:
        assert cut.stdout is not None
        for line in cut.stdout:
            if line.strip().endswith(": measured"):
                cut.send_signal(signal.SIGKILL)
                break
        cut.stdout.read()  # a worker holds no end of this pipe
    assert cut.returncode == -signal.SIGKILL
    first = stored(tmp_path / "cut")
    assert 1 <= len(first) < 4

    with start(tmp_path / "cut") as again:
        assert again.stdout is not None
        said = again.stdout.read()
    assert again.returncode == 0, said
    assert f"{len(first)} measured before" in said or parallel > 1
    assert first.items() <= stored(tmp_path / "cut").items()
    one, other = (figures_of(tmp_path / name / "frontier.json")["points"] for name in ("whole", "cut"))
    assert [p["accuracy"] for p in one] == [p["accuracy"] for p in other]
    assert [p["spread"]["accuracy"] for p in one] == [p["spread"]["accuracy"] for p in other]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are read from /proc")
def test_ctrl_c_ends_the_workers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "delta.cli", "frontier", write_sweep(tmp_path), "--parallel", "2"]
    with subprocess.Popen(
        [*map(str, command), "--out", str(tmp_path / "out")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if "whole model" in line:  # of a worker, which is at work
                break
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [int(pid) for task in tasks for pid in task.read_text().split()]
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert (process.returncode, said.strip().splitlines()[-1]) == (130, "error: interrupted")
    assert children
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
