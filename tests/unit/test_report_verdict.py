"""Verdicts: what they say in every case, and what none of them may say."""

import inspect
import itertools
import re

import pytest

from delta.report import verdict
from delta.report.charts import Canvas
from delta.report.figures import Figures
from delta.report.read import Run
from delta.report.sections import SECTIONS
from tests import report_runs

ALLOWED = re.compile(r"private (?:side|MACs)")
NEVER = re.compile(r"privat|secur|\bsafe|anonym|protect(?!ed values)|guarantee", re.IGNORECASE)
"""Words that promise; "unprotected values" is the name of a control."""


def _grid(function, **choices):
    """Every combination of arguments."""
    names = list(choices)
    for values in itertools.product(*choices.values()):
        yield function(**dict(zip(names, values, strict=True)))


def every_sentence():
    number = (None, 0.0, 0.2, 95.0)
    flags = (None, True, False)
    yield from _grid(
        verdict.cloud_worth,
        delta=number,
        alone=number,
        rival=number,
        macs=(None, 4.4e5),
        helps=flags,
        beats=flags,
    )
    yield from _grid(
        verdict.runs_worth, runs=(0, 8), helps=(0, 3), beats=(0, 2), low=(None, -0.2), high=(None, 1.0)
    )
    yield from _grid(verdict.guessed, accuracy=number, prior=number)
    yield from _grid(verdict.bounded, epsilon=(None, 0.5, 8.0), delta=(None, 1e-5), ceiling=(None, 0.5))
    yield from _grid(verdict.matched, top1=number, candidates=(None, 0, 1000, 50_000))
    yield from _grid(verdict.drawn, ssim=number, floor=number, looks=(None, 1, 20))
    yield from _grid(verdict.membership, auc=number, low=number, high=number)
    yield from (text for ssim in (None, 0.1, 0.95) if (text := verdict.too_weak(ssim)))
    yield from _grid(
        verdict.audited,
        rejected=flags,
        fault=(None, "no-clip"),
        claimed=(None, 0.268),
        bound=(None, 0.1, 0.4),
        samples=(None, 1e5),
        confidence=(None, 0.95),
        deviates=(True, False),
        measure=("μ", "ε"),
    )
    yield from _grid(
        verdict.chosen_against,
        limit=("matching of at most 5 %",),
        points=(0, 3),
        gain=(None, -0.5, 2.0),
        rival_gain=(None, -0.5, 0.0, 2.0),
        macs=(None, 5e6),
    )
    yield from _grid(
        verdict.timed, delta=(None, 3.0), whole=(None, 9.0), small=(None, 2.0), records=(None, 32)
    )
    yield from _grid(verdict.inferred, question=(None, "label"), accuracy=number, prior=number, better=flags)
    yield from _grid(
        verdict.linked, case=(None, "pairs"), identical=(None, 0.0, 1.0), auc=(None, 0.5), linkable=flags
    )
    yield from (text for beaten in (0, 1, 4) if (text := verdict.dominated(points=4, beaten=beaten)))
    yield verdict.nothing_proved()
    yield verdict.grown()


def test_every_function_of_the_module_is_covered():
    source = inspect.getsource(every_sentence)
    assert all(f"verdict.{name}" in source for name in verdict.__all__)


def test_no_verdict_promises_anything():
    sentences = set(every_sentence())
    assert len(sentences) > 100
    for text in sentences:
        assert not NEVER.search(ALLOWED.sub("", text)), text
        assert text[-1] == "."
        assert "None" not in text
        assert "nan" not in text


def test_verdicts_of_whole_runs_promise_nothing_either():
    for value in report_runs.everything():
        run = Run(value["kind"], Figures(value), "x.json")
        for section in SECTIONS[run.kind]([run], Canvas(), True):
            for text in section.verdict:
                assert not NEVER.search(ALLOWED.sub("", text)), text


@pytest.mark.parametrize(
    ("changes", "begins", "words"),
    [
        ({}, "Not rejected", "no proof"),
        ({"bound": 0.31, "rejected": True}, "Rejected", "does not keep"),
        ({"rejected": True}, "Rejected", "not independent"),
        ({"deviates": True}, "Deviates", "no proof"),
        (
            {"rejected": True, "fault": "no-clip", "bound": 2.0},
            "The seeded fault no-clip was caught",
            "2.000",
        ),
        ({"fault": "no-clip"}, "The seeded fault no-clip was missed", "0.243"),
        (
            {"fault": "scaled-sigma", "deviates": True},
            "The seeded fault scaled-sigma was caught",
            "described",
        ),
        ({"rejected": None}, "Not audited", "either way"),
    ],
)
def test_an_audit_says_what_it_found(changes, begins, words):
    given = {
        "rejected": False, "fault": None, "claimed": 0.268, "bound": 0.243, "samples": 1e5, "confidence": 0.95,
    }  # fmt: skip
    text = verdict.audited(**{**given, **changes})
    assert text.startswith(begins)
    assert words in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"helps": False}, "not worth it here"),
        ({"helps": True, "beats": False}, "not worth it here"),
        ({"helps": True, "beats": True}, "the best model without a cloud"),
        ({"helps": True, "beats": None, "rival": None}, "No model without a cloud was measured"),
        ({"helps": None, "beats": None}, "was not tested"),
        ({"delta": None, "helps": None, "beats": None}, "was not measured"),
    ],
)
def test_the_worth_of_the_cloud_is_told_in_every_case(changes, words):
    given = {"delta": 96.4, "alone": 94.0, "rival": 95.7, "macs": 4.4e5, "beats": False}
    assert words in verdict.cloud_worth(**{**given, **changes})


def test_points_that_a_model_without_a_cloud_beats_are_counted():
    assert verdict.dominated(points=4, beaten=0) is None
    assert verdict.dominated(points=4, beaten=1).startswith("1 of 4 points are worse")
    assert verdict.dominated(points=4, beaten=4).startswith("No point is worth its cloud")


def test_main_only_is_named_where_it_is_the_better_choice():
    text = verdict.chosen_against(limit="SSIM of at most 0.35", points=2, gain=1.8, rival_gain=-0.3, macs=5e6)
    assert "at least as accurate (+0.3 points)" in text
