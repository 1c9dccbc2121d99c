"""`delta attack` with membership, label and attribute inference, and linkability."""

from __future__ import annotations

import json

import pytest

from delta.errors import ConfigError
from tests.commands import fails

DATA = ("--data", "generated:10x1x16x16:240")
SMALL = ("--taps", "release", "--epochs", "1", "--shadows", "4", "--pool", "40", "--auxiliary", "64")


def test_the_further_attacks_leave_their_sections(run, bundle_dirs, tmp_path):
    report = tmp_path / "attack.json"
    names = "membership,label-inference,attributes,linkability"
    done = run("attack", bundle_dirs["noise"], *DATA, *SMALL, "--attacks", names, "--json", report)
    assert done.code == 0, done.err
    assert "Membership: was this record in the training data?" in done.out
    assert "always linkable, the bytes are the same" in done.out
    assert "private" not in done.out
    figures = json.loads(report.read_text())
    assert {row["target"] for row in figures["membership"]} == {"cloud model", "main model"}
    assert {row["attack"] for row in figures["membership"]} == {"label-only", "loss", "lira"}
    assert figures["membership_settings"]["shadows"] == 4
    assert [row["question"] for row in figures["label_inference"]] == ["label"]
    assert {row["question"] for row in figures["attributes"]} >= {"brightness", "stroke thickness"}
    assert figures["linkability"][0]["cases"][0]["identical_bytes"] == 1
    assert figures["taps"] == figures["matching"] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--attacks", "linkability", "--victims", "20"), ("40 victims", "20")),
        (("--attacks", "linkability", "--auxiliary", "20"), ("40 records", "20")),
        (("--attacks", "gossip"), ("membership, label-inference, attributes, linkability",)),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(run, bundle_dirs, options, words):
    fails(run("attack", bundle_dirs["none"], *DATA, *options), ConfigError, *words)
