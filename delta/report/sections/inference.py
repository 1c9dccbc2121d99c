"""Label and attribute inference, and linkability of repeated records: parts of `delta attack`."""

from __future__ import annotations

from collections.abc import Sequence

from delta.report.figures import Figures
from delta.report.markup import Html, table
from delta.report.numbers import DASH, count, decimal, interval, percent
from delta.report.verdict import inferred, linked

__all__ = ["inference_blocks", "inference_verdict"]

_CONTROLS = ("raw-ir", "raw-input", "random-bits")


def inference_verdict(figures: Figures) -> list[str]:
    """A sentence a question, and one a kind of pair, of what leaves; controls are left to the tables."""
    sentences = [
        inferred(
            question=one.text("question"),
            accuracy=one.number("accuracy"),
            prior=one.number("prior"),
            better=one.flag("better_than_guessing"),
        )
        for one in _questions(figures)
        if one.text("tap") not in _CONTROLS
    ]
    sentences += [
        linked(
            case=case.text("case"),
            identical=case.number("identical_bytes"),
            auc=_strongest(case),
            linkable=case.flag("linkable"),
        )
        for tap, case in _cases(figures)
        if tap not in _CONTROLS
    ]
    return sentences


def inference_blocks(figures: Figures) -> list[Html]:
    """The tables that there is anything for."""
    blocks = []
    questions = [
        [
            one.text("tap") or DASH,
            one.text("question") or DASH,
            count(one.number("values")),
            interval(percent(one.number("accuracy")), *one.range("interval")),
            percent(one.number("prior")),
            count(one.number("records")),
        ]
        for one in _questions(figures)
    ]
    if questions:
        columns = ["what is attacked", "question", "answers", "right (interval)", "by guessing", "records"]
        blocks.append(table(columns, questions, caption="Label and attribute inference"))
    cases = [
        [
            tap,
            case.text("case") or DASH,
            _share(case.number("identical_bytes")),
            _curve(case, "agreement"),
            _curve(case, "likelihood_ratio"),
            count(case.number("pairs")),
        ]
        for tap, case in _cases(figures)
    ]
    if cases:
        columns = [
            "what is attacked",
            "pairs",
            "same bytes",
            "AUC by agreement",
            "AUC by likelihood",
            "how many",
        ]
        blocks.append(table(columns, cases, caption="Linkability: are two releases of one record?"))
    return blocks


def _questions(figures: Figures) -> Sequence[Figures]:
    return [*figures.parts("label_inference"), *figures.parts("attributes")]


def _cases(figures: Figures) -> list[tuple[str, Figures]]:
    return [
        (link.text("tap") or DASH, case)
        for link in figures.parts("linkability")
        for case in link.parts("cases")
    ]


def _strongest(case: Figures) -> float | None:
    found = [case.number("agreement.auc"), case.number("likelihood_ratio.auc")]
    return max((value for value in found if value is not None), default=None)


def _curve(case: Figures, name: str) -> str:
    ends = case.range(f"{name}.auc_interval")
    return interval(decimal(case.number(f"{name}.auc"), digits=3), *ends, digits=3)


def _share(value: float | None) -> str:
    return percent(None if value is None else 100 * value)
