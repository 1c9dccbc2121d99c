"""`delta audit`: what a test that can refute the claim has found. It cannot confirm one."""

from __future__ import annotations

from collections.abc import Sequence

from delta.report.charts import Canvas, Chart, Dot, Series, dots
from delta.report.figures import Figures
from delta.report.markup import Html, element, table
from delta.report.numbers import DASH, count, decimal, epsilon_text, percent
from delta.report.read import Run
from delta.report.section import Section, tiles, unique
from delta.report.verdict import audited

__all__ = ["audit_sections"]

_TERMS = frozenset({"ε and δ", "μ", "audit"})


def audit_sections(runs: Sequence[Run], canvas: Canvas, include_records: bool) -> list[Section]:
    """One section for all audits."""
    del include_records  # audits hold no records
    if not runs:
        return []
    verdict = unique([_sentence(run.figures) for run in runs])
    first = runs[0].figures
    blocks: list[Html] = []
    if len(runs) == 1:
        measure, claimed, bound = _tested(first)
        blocks.append(
            tiles([
                (f"claimed {measure}", decimal(claimed, digits=3), _claim(first)),
                (f"{measure} certified at least", decimal(bound, digits=3), "no upper bound"),
                ("samples", count(first.number("samples")), ""),
                ("confidence", percent(_confidence(first), digits=0), ""),
            ])
        )  # fmt: skip
    chart = _chart(runs)
    blocks += [*([canvas.add(chart)] if chart is not None else []), _table(runs), *_checks(runs)]
    return [Section("Audit of the claim", verdict, tuple(blocks), (), (), _TERMS)]


def _sentence(figures: Figures) -> str:
    auditable = figures.flag("auditable")
    measure, claimed, bound = _tested(figures)
    return audited(
        rejected=None if auditable is False else figures.flag("rejected"),
        fault=figures.text("fault"),
        claimed=claimed,
        bound=bound,
        measure=measure,
        samples=figures.number("samples"),
        confidence=figures.number("confidence"),
        deviates=figures.flag("deviates") is True,
    )


def _chart(runs: Sequence[Run]) -> Chart | None:
    """Of those that test a μ; a training's ε is another unit and stands in the table."""
    claims: list[Dot] = []
    bounds: list[Dot] = []
    for run in runs:
        name = _what(run.figures)
        measure, claimed, bound = _tested(run.figures)
        if measure != "μ" or claimed is None or bound is None:
            continue
        samples = f"{count(run.figures.number('samples'))} samples"
        claims.append(Dot(claimed, name, (name, f"claimed μ = {decimal(claimed, digits=3)}"), marked=False))
        bounds.append(Dot(bound, name, (name, f"μ of at least {decimal(bound, digits=3)}", samples)))
    if not bounds:
        return None
    series = (
        Series("claimed μ", tuple(claims), 6),
        Series("μ that the samples certify at least", tuple(bounds), 1),
    )
    caption = (
        "A filled dot right of the hollow one refutes the claim. A filled dot left of it refutes nothing, and confirms "
        "nothing: more samples, or another attack, may move it."
    )
    view = dots(series, x={"title": "μ", "rangemode": "tozero"})
    return Chart("Claimed, and certified by samples", caption, (view,))


def _table(runs: Sequence[Run]) -> Html:
    rows = []
    for run in runs:
        figures = run.figures
        measure, claimed, bound = _tested(figures)
        rows.append([
            _what(figures),
            _claim(figures),
            f"{measure} = {decimal(claimed, digits=3)}",
            f"{measure} ≥ {decimal(bound, digits=3)}",
            count(figures.number("samples")),
            percent(_confidence(figures), digits=0),
            _outcome(figures),
            f"{decimal(figures.number('seconds'), digits=1)} s",
        ])  # fmt: skip
    columns = ["what", "claim", "tested", "certified", "samples", "confidence", "outcome", "took"]
    return table(columns, rows, caption="Audits")


def _checks(runs: Sequence[Run]) -> list[Html]:
    """Checks beside the bound."""
    rows = []
    for run in runs:
        for name, check in run.figures.named("checks"):
            passed = check.flag("passed")
            outcome = DASH if passed is None else "passed" if passed else "failed"
            p_value = check.number("p_value")
            what = check.text("what") or DASH
            rows.append([
                _what(run.figures), name, outcome, what if p_value is None else f"{what} (p = {p_value:.3g})"
            ])  # fmt: skip
    if not rows:
        return []
    grid = table(["what", "check", "outcome", "found"], rows, caption="Checks beside the bound")
    return [element("div", grid, class_="words")]


def _tested(figures: Figures) -> tuple[str, float | None, float | None]:
    """The measure that an audit tests, what is claimed of it, and the bound that the samples certify."""
    if figures.number("claimed.mu") is None and figures.number("epsilon_lower_bound") is not None:
        return "ε", figures.number("claimed.epsilon"), figures.number("epsilon_lower_bound")
    return "μ", figures.number("claimed.mu"), figures.number("mu_lower_bound")


def _outcome(figures: Figures) -> str:
    if figures.flag("auditable") is False or figures.flag("rejected") is None:
        return "not audited"
    return "rejected" if figures.flag("rejected") else "not rejected"


def _what(figures: Figures) -> str:
    fault = figures.text("fault")
    mechanism = figures.text("mechanism")
    name = mechanism if mechanism not in (None, "delta") else "the release as built"
    return f"seeded fault: {fault}" if fault else str(name)


def _claim(figures: Figures) -> str:
    epsilon, delta = figures.number("claimed.epsilon"), figures.number("claimed.delta")
    return DASH if epsilon is None else f"ε = {epsilon_text(epsilon)} at δ = {delta or 0:g}"


def _confidence(figures: Figures) -> float | None:
    value = figures.number("confidence")
    return None if value is None else 100 * value
