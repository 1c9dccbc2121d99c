"""What a section of the page is made of, and the pieces that several sections share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from delta.report.figures import Figures
from delta.report.markup import Html, element, joined, table
from delta.report.numbers import DASH, percent
from delta.report.read import Run

__all__ = ["CONTROLS", "Section", "accuracy_rows", "claim_list", "name_of", "tiles", "unique"]

CONTROLS = (
    ("private_only", "whole model on the private side"),
    ("main_only", "best model without a cloud, same private MACs"),
    ("main_alone", "Delta's main model alone"),
    ("delta", "Delta: main and cloud model"),
    ("random_bits", "control: the cloud gets random bits"),
    ("noiseless_bits", "control: the cloud gets noiseless bits"),
)
"""Accuracies by key, as tables and charts name them."""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        verdict: sentences, all of `delta.report.verdict`; also shown at the top of the page.
        blocks: below the verdict.
        keeps: what stays on the private side, as far as this run shows it.
        gives: what leaves, and what it gives away, with the numbers.
        terms: words of the glossary that it uses.
        shows_records: whether it shows pictures of records.
        hides_records: whether the run holds some that are not shown.
    """

    title: str
    verdict: tuple[str, ...]
    blocks: tuple[Html, ...]
    keeps: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    terms: frozenset[str] = field(default_factory=frozenset)
    shows_records: bool = False
    hides_records: bool = False


def tiles(found: Sequence[tuple[str, str, str]]) -> Html:
    """Large numbers: label, number, and a line below it; those without a number are left out."""
    return element(
        "dl",
        *(
            element(
                "div", element("dt", label), element("dd", value, element("small", below) if below else None)
            )
            for label, value, below in found
            if value != DASH
        ),
        class_="tiles",
    )


def accuracy_rows(figures: Figures) -> list[tuple[str, str, float]]:
    """The accuracies that were measured: key, name, percent."""
    accuracy = figures.part("accuracy")
    found = []
    for key, name in CONTROLS:
        value = accuracy.number(key)
        if value is not None:
            found.append((key, name, value))
    return found


def claim_list(figures: Figures, *, caption: str) -> Html:
    """A claim and its conditions as a table."""
    privacy = figures.part("privacy")
    conditions = [line for line in privacy.get("conditions") or [] if isinstance(line, str)]
    rows = [
        ("what it is", privacy.text("label") or figures.text("label") or DASH),
        ("claim", privacy.text("claim") or DASH),
        ("unit", privacy.text("unit") or DASH),
        *(("condition", line) for line in conditions),
        ("whole persons", privacy.text("person") or DASH),
    ]
    return joined([element("div", table(["", ""], rows, caption=caption), class_="words")])


def name_of(run: Run) -> str:
    """What a run is called: its own name, else its file's."""
    return run.figures.text("name") or run.source


def unique(lines: Sequence[str]) -> tuple[str, ...]:
    """Each line once, in order."""
    return tuple(dict.fromkeys(lines))


def shares(values: Sequence[tuple[str, float | None]]) -> str:
    """Names with percentages, for one cell."""
    return ", ".join(f"{name} {percent(value)}" for name, value in values)
