"""Which files the report reads, and how it refuses the others."""

import json
from pathlib import Path

import pytest

from delta.errors import InputError
from delta.report.figures import Figures
from delta.report.kinds import KINDS, kind_of
from delta.report.numbers import (
    count,
    decimal,
    epsilon_text,
    interval,
    millions,
    ms,
    percent,
    signed,
    size,
    spread,
)
from delta.report.read import read_runs
from tests import report_runs

ROOT = Path(__file__).parents[2]


def _written(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_every_kind_is_read(tmp_path):
    paths = [_written(tmp_path / f"{i}.json", value) for i, value in enumerate(report_runs.everything())]
    runs = read_runs(paths)
    assert [run.kind for run in runs] == [value["kind"] for value in report_runs.everything()]
    assert {run.kind for run in runs} == set(KINDS)


def test_files_without_a_kind_are_told_by_their_keys():
    for value in (report_runs.train(), report_runs.demo(), report_runs.bench(), report_runs.bench_scale()):
        kind = value.pop("kind")
        assert kind_of(value, where="x.json") == kind


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "results").glob("cifar10*.jsonl")), ids=lambda p: p.name
)
def test_the_published_trainings_are_read(path):
    runs = read_runs([path])
    assert len(runs) == len(path.read_text().splitlines())
    assert {run.kind for run in runs} == {"train"}
    assert all(run.figures.number("accuracy.delta") for run in runs)


def test_the_published_benchmark_is_read():
    (run,) = read_runs([ROOT / "docs" / "results" / "benchmark-two-cores.json"])
    assert run.kind == "bench-latency"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ("holds no object of figures",)),
        ("no json", ("is no JSON",)),
        ("[1, 2]", ("holds no object of figures",)),
        ('{"kind": "train"}\n{"kind": ', ("line 2 cannot be read",)),
        ({"kind": "poem"}, ("kind 'poem'", *KINDS)),
        ({"kind": ["train"]}, ("kind a list",)),
        ({"kind": "x" * 500}, ("kind a str",)),
        ({"some": "thing"}, ("has no kind", *KINDS)),
        ({"kind": "frontier", "points": []}, ("holds no points", "run it to its end")),
        ({"kind": "attack", "taps": [], "matching": []}, ("holds no taps or matching",)),
        ({"kind": "bench-latency", "rows": []}, ("holds no rows",)),
        ({"kind": "membership"}, ("holds no membership",)),
        ("[" * 100_000, ("is no JSON",)),
    ],
)
def test_what_is_no_file_of_figures_is_refused_in_one_line(tmp_path, content, words):
    path = _written(tmp_path / "x.json", content)
    with pytest.raises(InputError) as raised:
        read_runs([path])
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 400
    for word in (str(path), *words):
        assert word in text


def test_absent_closed_and_binary_files_are_refused(tmp_path):
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    for name, words in (("none.json", "No such file"), (".", "Is a directory"), ("b.json", "is no text")):
        with pytest.raises(InputError, match=words):
            read_runs([tmp_path / name])


def test_figures_that_are_absent_of_another_type_or_not_finite_are_none():
    found = Figures(
        json.loads('{"a": {"b": NaN, "c": Infinity, "d": "1", "e": true, "f": 2}, "g": [1, NaN]}')
    )
    assert [found.number(f"a.{key}") for key in "bcdefg"] == [None, None, None, None, 2.0, None]
    assert found.range("g") == (1.0, None)
    assert found.text("a.f") is None
    assert found.flag("a.e") is True
    assert found.parts("a") == []
    assert found.part("nothing").number("here") is None


def test_what_was_not_measured_is_a_dash():
    for render in (percent, decimal, millions, ms, size, count):
        assert render(None) == "–"
    assert spread([]) == "–"
    assert interval("1", None, 2.0) == "1"


def test_numbers_are_readable():
    assert (ms(0.247), ms(14.53), ms(2781.95)) == ("0.25 ms", "14.5 ms", "2,782 ms")
    assert (size(40.5), size(12_289), size(2**21)) == ("40 bytes", "12.0 KiB", "2.0 MiB")
    assert (millions(0), millions(440_000), millions(14_308_128)) == ("0", "0.44 M", "14.3 M")
    assert spread([55.7, 62.2]) == "55.7 to 62.2 %"


def test_large_epsilons_and_small_differences_are_told_plainly():
    assert (epsilon_text(7.999999), epsilon_text(0.5), epsilon_text(1024.2)) == ("8", "0.5", "1,024")
    assert (signed(-0.04), signed(0.04), signed(-0.06), signed(1.84)) == ("+0.0", "+0.0", "-0.1", "+1.8")
