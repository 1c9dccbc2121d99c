"""The demonstration, small: two processes, three rows, a summary and a page."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from delta.bundle.store import load_bundle
from delta.cli.demo import _connect, _launch
from delta.data.load import load_dataset
from delta.demo import DemoSettings, render_page, run_demo, summarise
from delta.demo.settings import EPSILON

SETTINGS = DemoSettings(attack_seconds=1.0, gallery=3)


def _run(out):
    stages = []

    def watch(stage, done, total):
        if done == total:
            stages.append(stage)

    data = load_dataset("embedded", limit=240)
    out.mkdir(exist_ok=True)
    return run_demo(data, SETTINGS, out=out, launch=_launch(out), connect=_connect, progress=watch), stages


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    result, stages = _run(out)
    return out, result, stages


def test_the_summary_holds_the_declared_figures(demo):
    _, result, _ = demo
    summary = json.loads(json.dumps(summarise(result), allow_nan=False))
    assert summary["records"] == 60
    assert (summary["kind"], summary["seed"]) == ("demo", SETTINGS.seed)
    assert "examples" not in summary  # pictures of records only where they are asked for
    assert len(summarise(result, examples=3)["rows"]["principal"]["examples"]) == 3
    assert summary["tee"] == "simulated"
    for row in (summary, *summary["rows"].values()):
        assert set(row["accuracy"]) == {
            "private_only",
            "main_alone",
            "delta",
            "random_bits",
            "noiseless_bits",
            "main_only",
        }
        assert all(0 <= value <= 100 for value in row["accuracy"].values())
        assert set(row["bytes_per_record"]) == {"up", "down"}
        assert (
            128 < row["bytes_per_record"]["up"] < 220
        )  # the handshake and one repeated request on few records
        assert set(row["ms_per_record"]) == {"private", "cloud", "wall"}
        assert all(value > 0 for value in row["ms_per_record"].values())
        assert {"mu", "epsilon", "delta", "unit", "claim", "ceiling_bits"} <= set(row["privacy"])
        assert {"cloud_label_accuracy", "match_top1", "ssim"} <= set(row["leakage"])
        assert row["fallbacks"] == 0
    assert summary["privacy"]["epsilon"] is None
    assert summary["privacy"]["claim"] == "none"
    assert summary["label"] == "empirical obfuscation"
    assert set(summary["rows"]) == {"epsilon-8", "principal"}
    noisy = summary["rows"]["epsilon-8"]["privacy"]
    assert noisy["epsilon"] == pytest.approx(EPSILON)
    assert noisy["ceiling_bits"] == pytest.approx(0.50, abs=0.01)
    assert noisy["claim"].endswith(
        "per record, local, replace-one"
    )  # the stem is fixed: no condition on people


def test_the_figures_are_those_of_the_models(demo):
    """Over gRPC the answers are those of the local copy; noiseless bits name their image, noisy ones do not."""
    _, result, _ = demo
    for name in ("main", "principal"):
        row = result.rows[name]
        assert row.delta_accuracy == pytest.approx(row.controls.delta)
        assert row.controls.noiseless_bits == pytest.approx(row.controls.delta)
        assert row.leakage.match.top1 > 95
    assert result.rows["epsilon-8"].leakage.match.top1 < 40
    assert result.rows["main"].controls.main_alone == result.rows["epsilon-8"].controls.main_alone


def test_the_page_is_whole_and_needs_no_network(demo):
    _, result, _ = demo
    page = render_page(result, gallery=3, show_records=True)
    page = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # plotly.js, and what draws with it
    assert page.count("<img") == 3 * (5 + 3 + 3)  # of the main row also what stayed
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert not re.search(r"""(?:href|src|url)\s*[=(]\s*["']?(?:https?:)?//""", page)
    assert "contains private records" in page
    assert "TEE: simulated" in page


def test_records_stay_off_the_page_unless_asked_for(demo):
    _, result, _ = demo
    page = render_page(result, gallery=3, show_records=False)
    assert "<img" not in page
    assert "--include-records" in page


def test_the_page_says_so_when_the_cloud_is_not_worth_it(demo):
    _, result, _ = demo
    main = replace(result.rows["main"], gain=3, loss=3)
    page = render_page(replace(result, rows={**result.rows, "main": main}), gallery=1, show_records=False)
    assert "not worth it here" in page


def test_the_cloud_gets_the_exported_part_alone(demo):
    out, _, _ = demo
    assert sorted(path.name for path in (out / "cloud" / "main").iterdir()) == [
        "cloud.safetensors",
        "manifest.json",
    ]
    assert load_bundle(out / "bundle").manifest.release.sigma is None
    assert load_bundle(out / "bundle-epsilon-8").manifest.release.sigma is not None


def test_a_second_run_trains_nothing_and_finds_the_same(demo):
    out, first, stages = demo
    assert {"whole model", "main model"} <= set(stages)
    second, again = _run(out)
    assert not [stage for stage in again if "model" in stage]
    for name, row in first.rows.items():
        assert second.rows[name].controls.main_alone == row.controls.main_alone
    assert second.rows["main"].controls == first.rows["main"].controls


@pytest.mark.slow
def test_the_command_meets_its_floors(tmp_path):
    command = [sys.executable, "-m", "delta.cli", "demo", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["accuracy"]["private_only"] >= 90
    assert summary["bytes_per_record"]["up"] <= 160
    assert summary["accuracy"]["noiseless_bits"] > summary["accuracy"]["main_alone"]
    assert summary["leakage"]["match_top1"] > 99
    assert (tmp_path / "demo" / "report.html").stat().st_size > 20_000
