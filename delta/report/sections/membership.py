"""Membership inference: can training records be told from others?"""

from __future__ import annotations

from collections.abc import Sequence

from delta.report.charts import Canvas, Chart, Dot, Series, dots
from delta.report.figures import Figures
from delta.report.markup import Html, table
from delta.report.numbers import DASH, count, decimal, interval, percent
from delta.report.read import Run
from delta.report.section import Section
from delta.report.verdict import membership, nothing_proved

__all__ = ["membership_blocks", "membership_sections", "worst_membership"]


_KNOWN = "the stored release"
"""The cloud holds these, and knows anyway which of them it has trained on: no inference."""


def membership_sections(runs: Sequence[Run], canvas: Canvas, include_records: bool) -> list[Section]:
    """A section a run."""
    del include_records  # scores, no records
    return [_section(run, canvas) for run in runs]


def _section(run: Run, canvas: Canvas) -> Section:
    attacks = run.figures.parts("membership") or run.figures.parts("attacks")
    verdict = (worst_membership(attacks), nothing_proved())
    gives = ("whether a record was in the training set, as far as the attacks here tell it",)
    name = run.figures.text("bundle") or run.source
    blocks = tuple(membership_blocks(attacks, canvas))
    return Section(f"Membership inference on {name}", verdict, blocks, (), gives, frozenset({"membership"}))


def worst_membership(attacks: Sequence[Figures]) -> str:
    """The sentence about the strongest of the attacks."""
    others = [one for one in attacks if one.text("sees") != _KNOWN]
    best = max(
        others, key=lambda one: one.range("auc_interval")[0] or one.number("auc") or 0.0, default=Figures()
    )
    low, high = best.range("auc_interval")
    return membership(auc=best.number("auc"), low=low, high=high)


def membership_blocks(attacks: Sequence[Figures], canvas: Canvas) -> list[Html]:
    """A chart and a table; nothing without attacks."""
    if not attacks:
        return []
    found = []
    for one in attacks:
        auc = one.number("auc")
        if auc is not None:
            ends = one.range("auc_interval")
            hover = (_name(one), f"AUC {interval(decimal(auc, digits=3), *ends, digits=3)}")
            found.append(Dot(auc, _name(one), hover, *ends))
    table_ = _table(attacks)
    if not found:
        return [table_]
    caption = (
        "AUC of each attack: 0.5 is a coin toss, 1 is always right. The rates at few false alarms say more than the "
        "average: an attack that is sure about a few people harms those. Bars: 95 % interval."
    )
    view = dots(
        [Series("AUC", tuple(found), 1)],
        x={"title": "AUC", "range": [min(0.45, *(dot.low or 0.5 for dot in found)), 1.02]},
    )
    return [canvas.add(Chart("Membership inference", caption, (view,))), table_]


def _table(attacks: Sequence[Figures]) -> Html:
    rows = [
        [
            _name(one),
            interval(decimal(one.number("auc"), digits=3), *one.range("auc_interval"), digits=3),
            _rate(one, "0.001"),
            _rate(one, "0.01"),
            one.text("sees") or DASH,
            count(one.number("shadows")),
            count(one.number("members")),
        ]
        for one in attacks
    ]
    columns = [
        "attack",
        "AUC (interval)",
        "found at 0.1 % false alarms",
        "at 1 %",
        "sees",
        "shadow models",
        "members",
    ]
    return table(columns, rows, caption="Membership attacks")


def _rate(one: Figures, key: str) -> str:
    """A true positive rate with its interval; the key of its false positive rate has a dot, and is read whole."""
    rates = one.part("tpr_at_fpr").values
    row = Figures({"row": rates.get(key)})
    value = row.number("row.tpr")
    low, high = row.part("row").range("interval")
    if value is None:
        return DASH
    ends = (None, None) if low is None or high is None else (100 * low, 100 * high)
    text = interval(percent(100 * value, digits=2), *ends, digits=2)
    return text if row.flag("row.resolved") is not False else f"{text}, too few records to tell"


def _name(one: Figures) -> str:
    name, target = one.text("attack") or one.text("name") or DASH, one.text("target")
    copy = one.text("copy")
    return name if target is None else f"{name} on {f'the {copy}' if copy else 'the'} {target}"
