from __future__ import annotations

import builtins
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image

from delta.bench.plot_style import METHODS, colour_of, in_order, labels_of, marker_of, million
from delta.bench.plots import plot_accuracy, plot_bytes, plot_latency, plot_scale, plot_timeline
from delta.errors import ConfigError, InputError
from delta.methods.registry import method_class, method_names

pytest.importorskip("matplotlib")


def row(method="delta", ms=10.0, *, phase="infer", threads=1, up=128, macs=2_000_000, **more):
    return {
        "method": method,
        "network": "resnet18 3x32x32",
        "phase": phase,
        "batch": 32,
        "threads": threads,
        "link": "none",
        "ms_median": ms,
        "ms_min": 0.9 * ms,
        "ms_max": 1.3 * ms,
        "speedup_vs_private_only": 90 / ms,
        "speedup_vs_main_only": None,
        "bytes_up": 32 * up,
        "bytes_down": 32 * up,
        "private_macs": macs,
    } | more


ROWS = [
    row("private-only", 90.0, up=0),
    row("private-only", 50.0, up=0, threads=2),
    row("delta", 5.0),
    row("delta", 3.0, threads=2),
    row("delta", 7.0, macs=9_000_000),
    row("private-only", 300.0, up=0, phase="train"),
    row("delta", 30.0, phase="train stage 1", up=0),
    row("he", 9_000.0, link="20 Mbit/s, 20 ms", up=300_000),
]
POINTS = [
    {"label": "main-only", "private_macs": 2e6, "accuracy": 0.8, "low": 0.79, "high": 0.81},
    {"label": "main-only", "private_macs": 5e7, "accuracy": 0.9, "low": 0.89, "high": 0.91},
    {"label": "cloud-only", "private_macs": 0, "accuracy": 0.95},
    {"label": "random bits", "private_macs": 7e6, "accuracy": 0.7, "low": None, "high": None},
]
EVENTS = [
    {"lane": "private", "name": "backbone and release", "start_ms": 0.0, "end_ms": 4.0},
    {"lane": "private", "name": "main model", "start_ms": 4.0, "end_ms": 9.0},
    {"lane": "cloud", "name": "cloud model", "start_ms": 5.0, "end_ms": 8.0},
]
SCALE = [
    row(name, ms * n, batch=n) for name, ms in (("delta", 1.0), ("private-only", 9.0)) for n in (1, 8, 64)
]

PLOTS = {
    "latency": (plot_latency, ROWS),
    "bytes": (plot_bytes, ROWS),
    "accuracy": (plot_accuracy, POINTS),
    "timeline": (plot_timeline, EVENTS),
    "scale": (plot_scale, SCALE),
}


def texts(path) -> str:
    """What a reader of an SVG sees written."""
    return "\n".join(
        "".join(node.itertext()) for node in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    )


@pytest.mark.parametrize("name", PLOTS)
def test_a_png_and_an_svg_of_each(name, tmp_path) -> None:
    draw, rows = PLOTS[name]
    draw(rows, tmp_path / "plot.png")
    draw(rows, tmp_path / "folder" / "plot.SVG")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
    assert texts(tmp_path / "folder" / "plot.SVG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "plot.png"]


def test_latency_says_what_every_bar_is(tmp_path) -> None:
    plot_latency(ROWS, tmp_path / "plot.svg")
    seen = texts(tmp_path / "plot.svg")
    for words in (
        "Inference, resnet18 3x32x32, batch 32",
        "Inference, resnet18 3x32x32, batch 32, link 20 Mbit/s, 20 ms",
        "Training step, resnet18 3x32x32, batch 32",
        "delta, stage 1",
        "delta, 9 M MACs",
        "5 ms, 18×",
        "9,000 ms, 0.01×",
        "2 threads",
        "milliseconds (log scale)",
    ):
        assert words in seen.splitlines()
    assert "90 ms" in seen.splitlines()  # the baseline has no ratio to itself
    assert seen.index("private-only") < seen.index("delta, 2 M MACs")


def test_rows_that_differ_in_nothing_shown_have_bars_of_their_own(tmp_path) -> None:
    plot_latency([row(), row(ms=20.0)], tmp_path / "plot.svg")
    seen = texts(tmp_path / "plot.svg").splitlines()
    assert {"delta", "delta (2)", "10 ms, 9×", "20 ms, 4.5×"} <= set(seen)
    assert any("private side on 1 thread" in line for line in seen)


def test_bytes_are_of_one_record_and_zero_is_written_out(tmp_path) -> None:
    plot_bytes(ROWS, tmp_path / "plot.svg")
    seen = texts(tmp_path / "plot.svg").splitlines()
    assert seen.count("nothing") == 6
    assert "128 B" in seen
    assert "300 kB" in seen
    plot_bytes([row("private-only", up=0)], tmp_path / "none.svg")


def test_accuracy_names_its_points(tmp_path) -> None:
    plot_accuracy(POINTS, tmp_path / "plot.svg")
    seen = texts(tmp_path / "plot.svg").splitlines()
    names = ["main-only", "cloud-only (no private MACs)", "random bits"]
    assert [line for line in seen if line in names] == names


def test_the_timeline_lists_events_with_their_times(tmp_path) -> None:
    plot_timeline(EVENTS, tmp_path / "plot.svg")
    seen = texts(tmp_path / "plot.svg").splitlines()
    assert {"private", "cloud", "1  backbone and release: 4 ms", "3  cloud model: 3 ms"} <= set(seen)


@pytest.mark.parametrize(
    ("x", "values"),
    [("batch", (1, 32)), ("image", ("3x32x32", "3x64x64")), ("rank", (4, 8)), ("clients", (1, 2))],
)
def test_scale_over_every_setting(x, values, tmp_path) -> None:
    rows = [row(macs=5 * i, **{x: value}) for i, value in enumerate(values, 1)]
    plot_scale(rows, tmp_path / "plot.svg", x=x)
    assert "Inference: time of a call" in texts(tmp_path / "plot.svg")


@pytest.mark.parametrize("name", PLOTS)
def test_nothing_to_draw_is_refused_in_one_line(name, tmp_path) -> None:
    draw, rows = PLOTS[name]
    for wrong, path, words in (
        ([], "plot.png", "no rows"),
        ([{}], "plot.png", "rows lack"),
        (rows, "plot.gif", "neither .png nor .svg"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            draw(wrong, tmp_path / path)
        assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_other_mistakes_are_refused(tmp_path) -> None:
    path = tmp_path / "plot.png"
    with pytest.raises(ConfigError, match="from 0 to 1"):
        plot_accuracy([{"label": "delta", "private_macs": 1e6, "accuracy": 92.0}], path)
    with pytest.raises(ConfigError, match="lane 'gpu'"):
        plot_timeline([{**EVENTS[0], "lane": "gpu"}], path)
    with pytest.raises(ConfigError, match="ends before"):
        plot_timeline([{**EVENTS[0], "end_ms": -1.0}], path)
    with pytest.raises(ConfigError, match="none of batch"):
        plot_scale(SCALE, path, x="colour")
    with pytest.raises(ConfigError, match="no number"):
        plot_scale([row(image="large")], path, x="image")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        plot_timeline(EVENTS, tmp_path / "file" / "plot.png")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch) -> None:
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"delta-split\[bench\]"):
        plot_latency(ROWS, tmp_path / "plot.png")


def test_methods_keep_their_order_and_their_signs() -> None:
    assert in_order(["zz", "cloud-only", "delta", "private-only", "delta"]) == [
        "private-only",
        "delta",
        "cloud-only",
        "zz",
    ]
    ours = {name for name in method_names() if method_class(name).__module__.startswith("delta.methods.")}
    assert ours <= set(METHODS)
    assert (
        len({(colour_of(name), marker_of(name)) for name in METHODS})
        == len({colour_of(n) for n in METHODS})
        == 9
    )


def test_labels_say_no_more_than_they_must() -> None:
    rows = [row(), row(threads=2), row(macs=5_000_000), row(phase="train"), row(phase="train, one-shot")]
    assert labels_of(rows) == [
        "delta, 2 M MACs",
        "delta, 2 M MACs",
        "delta, 5 M MACs",
        "delta",
        "delta, one-shot",
    ]
    assert [million(n) for n in (12, 1_500, 555_468_800, 1.8e9)] == ["12", "1.5 k", "555 M", "1.8 G"]
