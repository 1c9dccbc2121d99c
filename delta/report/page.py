"""The page: summary, sections, words, and where every number comes from. One file that asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

import delta
from delta.report.charts import Canvas, plotly_script
from delta.report.glossary import glossary
from delta.report.kinds import KINDS
from delta.report.markup import Html, element, joined, paragraphs
from delta.report.provenance import commands_table, runs_table
from delta.report.read import Run
from delta.report.section import Section, unique
from delta.report.sections import SECTIONS

__all__ = ["render_report"]

_TITLE = "Delta: what it keeps, what it gives away"


def render_report(runs: Sequence[Run], *, title: str | None = None, include_records: bool = False) -> str:
    """The page as a string. Where it shows records it says so at its top (I6).

    Args:
        runs: at least one, of any kinds.
        title: of the page.
        include_records: show pictures of records, also of a user's own.

    Raises:
        ConfigError: plotly is not installed.
    """
    canvas = Canvas()
    sections: list[Section] = []
    for kind in KINDS:
        some = [run for run in runs if run.kind == kind]
        if some:
            sections += SECTIONS[kind](some, canvas, include_records)
    heading = title or _TITLE
    body = element(
        "main",
        element("h1", heading),
        element("p", _subtitle(runs), class_="mute"),
        _banner(sections),
        _summary(sections),
        _sides(sections),
        *(_section(number, section) for number, section in enumerate(sections)),
        element(
            "section",
            element("h2", "Words", id="words"),
            glossary(term for section in sections for term in section.terms),
        ),
        element(
            "section",
            element("h2", "Runs, seeds and versions", id="runs"),
            element("p", "Every figure was measured in the runs listed here, or is marked as modelled."),
            runs_table(runs),
            commands_table(runs),
        ),
    )
    return _document(heading, body, canvas)


def _document(heading: str, body: Html, canvas: Canvas) -> str:
    """Head and scripts. The policy lets those scripts run and nothing else: no request can leave the page."""
    assets = files("delta.report") / "assets"
    style = (assets / "page.css").read_text(encoding="utf-8")
    scripts = [plotly_script(), (assets / "charts.js").read_text(encoding="utf-8")] if canvas.charts else []
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'"
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", heading),
        element("style", Html(style)),
    )
    data = element("script", Html(canvas.to_json()), id="charts", type="application/json")
    tail = [data, *(element("script", Html(script)) for script in scripts)] if scripts else []
    page = element("html", head, element("body", body, *tail), lang="en")
    return f"<!doctype html>\n{page}\n"


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _subtitle(runs: Sequence[Run]) -> str:
    plural = "run" if len(runs) == 1 else "runs"
    return (
        f"Made from {len(runs)} {plural} by delta {delta.__version__}. TEE: simulated: whoever runs the private "
        "machine sees everything on it."
    )


def _banner(sections: Sequence[Section]) -> Html | None:
    """Whether the page holds records: said before anything else."""
    if any(section.shows_records for section in sections):
        strong = element("strong", "This page contains private records.")
        return element(
            "div",
            element(
                "p", strong, " Pictures below show them as they are: give it to nobody who may not see them."
            ),
            class_="banner",
        )
    if any(section.hides_records for section in sections):
        text = "Records are not shown; make the page with --include-records to put them here."
        return element("div", element("p", text), class_="banner")
    return None


def _summary(sections: Sequence[Section]) -> Html:
    found = [
        element("div", element("h3", section.title), paragraphs(section.verdict), class_="verdict")
        for section in sections
    ]
    links = [
        element("li", element("a", section.title, href=f"#section-{number}"))
        for number, section in enumerate(sections)
    ]
    more = [
        element("li", element("a", name, href=f"#{anchor}"))
        for name, anchor in (("Words", "words"), ("Runs, seeds and versions", "runs"))
    ]
    return joined([
        element("nav", element("ul", *links, *more), aria_label="Sections"),
        element("section", element("h2", "In short"), *found),
    ])  # fmt: skip


def _sides(sections: Sequence[Section]) -> Html | None:
    """What stays and what leaves, in a line each."""
    keeps = unique([line for section in sections for line in section.keeps]) or (
        "the records, and everything that is computed from them but what is listed beside this",
    )
    given = [section for section in sections if section.gives]
    if not given:
        return None
    # Of several runs each is told by itself: their figures are not of one thing.
    gives = [
        joined([element("h4", section.title) if len(given) > 1 else None, _list(section.gives)])
        for section in given
    ]
    return element(
        "section",
        element("h2", "What stays, and what leaves"),
        element(
            "div",
            element("div", element("h3", "Stays on the private side"), _list(keeps)),
            element("div", element("h3", "Leaves, or can be worked out from what leaves"), *gives),
            class_="sides",
        ),
    )


def _list(lines: Sequence[str]) -> Html:
    return element("ul", *(element("li", line) for line in lines))


def _section(number: int, section: Section) -> Html:
    return element(
        "section",
        element("h2", section.title, id=f"section-{number}"),
        *section.blocks,
    )
