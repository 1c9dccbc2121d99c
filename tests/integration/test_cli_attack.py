"""`delta attack`: the whole command on a small bundle, and what it refuses in one line."""

from __future__ import annotations

import json

import pytest

from delta.errors import BundleError, ConfigError, DataError, InputError
from tests.commands import fails

DATA = ("--data", "generated:10x1x16x16:100")
QUICK = ("--epochs", "1", "--width", "4")


def test_it_attacks_and_says_what_it_got(run, bundle_dirs, tmp_path):
    report = tmp_path / "attack.json"
    done = run(
        *("attack", bundle_dirs["noise"], *DATA, *QUICK, "--observations", "1,3", "--candidates", "20,60"),
        *("--victims", "20", "--auxiliary", "64", "--examples", "2", "--include-records", "--json", report),
    )
    assert done.code == 0, done.err
    assert "nothing was released" in done.out
    assert "tee: simulated" in done.out
    assert "Another attack may do better" in done.out
    figures = json.loads(report.read_text())
    assert figures["kind"] == "attack"
    assert [row["looks"] for row in figures["taps"]] == [1, 3, 1, 1]
    assert len(figures["examples"]) == 2
    assert not list(tmp_path.glob("ledger*"))
    assert not (bundle_dirs["noise"].parent / "noise.key").exists()


def test_one_attack_on_one_tap_prints_json_alone(run, bundle_dirs):
    done = run(
        *("attack", bundle_dirs["none"], *DATA, "--taps", "release", "--attacks", "matching,labels"),
        *("--victims", "20", "--json", "-"),
    )
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert {row["tap"] for row in figures["matching"]} == {"release"}
    assert figures["taps"] == []
    assert figures["examples"] == []
    assert figures["labels"]["prior"] >= 10


def test_the_other_drawing_attacks_have_rows_of_their_own(run, bundle_dirs, tmp_path):
    report = tmp_path / "attack.json"
    done = run(
        *(
            "attack",
            bundle_dirs["none"],
            *DATA,
            *QUICK,
            "--attacks",
            "cgan,optimisation",
            "--taps",
            "release",
        ),
        *("--victims", "20", "--auxiliary", "64", "--searched", "5", "--steps", "2", "--json", report),
    )
    assert done.code == 0, done.err
    figures = json.loads(report.read_text())
    names = [row["attack"] for row in figures["taps"]]
    assert names == ["cgan, adversarial alone", "cgan with an L1 term", "optimisation from the mean image"]
    assert figures["taps"][2]["search"]["victims"] == 5
    (strongest,) = figures["strongest"]
    assert strongest["attack"] in names
    assert f"attack tried ({strongest['attack']})" in " ".join(done.out.split())
    assert "(strongest)" in done.out


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (("--attacks", "guessing"), ConfigError, ("guessing", "matching, labels, decoder")),
        (("--attacks", "matching,"), ConfigError, ("no list",)),
        (("--taps", "wire"), ConfigError, ("unknown tap", "release, raw-ir, random-bits")),
        (("--candidates", "many"), ConfigError, ("whole numbers",)),
        (("--candidates", "100000"), ConfigError, ("100,000", "records")),
        (("--observations", "0"), ConfigError, ("at least 1",)),
        (("--victims", "100000"), ConfigError, ("100,000 victims",)),
        (("--patch", "5"), ConfigError, ("does not divide",)),
        (("--examples", "3", "--json", "-"), ConfigError, ("--include-records",)),
        (("--examples", "3", "--include-records"), ConfigError, ("--json",)),
        (("--device", "tpu"), ConfigError, ("device",)),
        (("--attacks", "cGAN"), ConfigError, ("unknown attack cGAN", "cgan, optimisation")),
        (("--attacks", "cgan,cgan"), ConfigError, ("twice",)),
    ],
)
def test_bad_options_are_refused_in_one_line(run, bundle_dirs, options, error, words):
    done = run("attack", bundle_dirs["none"], *DATA, *QUICK, *options)
    fails(done, InputError if options[0] == "--patch" else error, *words)


def test_bad_bundles_data_and_reports_are_refused(run, bundle_dirs, tmp_path):
    fails(run("attack", tmp_path, *DATA), BundleError, "not a complete bundle")
    fails(run("attack", bundle_dirs["none"], "--data", "nowhere"), DataError, "nowhere")
    larger = "generated:10x1x32x32:100"
    fails(run("attack", bundle_dirs["none"], "--data", larger), ConfigError, "1×16×16", "1×32×32")
    fails(run("attack", bundle_dirs["none"], *DATA, "--json", tmp_path), InputError, "cannot be written")
