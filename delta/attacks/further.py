"""What the further attacks of a run found: membership, labels and attributes read by the attacker, linkability."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from delta.attacks.inference import Inferred
from delta.attacks.linkability import Linkability
from delta.attacks.membership.curves import Curve
from delta.attacks.membership.report import MembershipReport

__all__ = ["FURTHER", "Further"]

FURTHER = ("membership", "label-inference", "attributes", "linkability")
"""Their names in `--attacks`."""

Rows = list[list[str]]


@dataclass(frozen=True)
class Further:
    """Findings; an attack that was not asked for left none.

    Attributes:
        membership: of both models; none where it was not asked for.
        labels: read by the attacker's own classifier, by tap.
        attributes: likewise.
        links: a tap each.
    """

    membership: MembershipReport | None = None
    labels: tuple[tuple[str, Inferred], ...] = ()
    attributes: tuple[tuple[str, Inferred], ...] = ()
    links: tuple[Linkability, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The sections of a report; only those that were asked for."""
        sections: dict[str, Any] = {}
        if self.membership is not None:
            sections["membership"] = self.membership.to_json()
            sections["membership_settings"] = self.membership.settings.model_dump(mode="json")
            sections["membership_notes"] = list(self.membership.notes)
        if self.labels:
            sections["label_inference"] = [{"tap": tap, **found.to_json()} for tap, found in self.labels]
        if self.attributes:
            sections["attributes"] = [{"tap": tap, **found.to_json()} for tap, found in self.attributes]
        if self.links:
            sections["linkability"] = [link.to_json() for link in self.links]
        return sections

    def lines(self) -> Iterator[str]:
        """In plain words, a line a finding."""
        if self.membership is not None:
            yield from self.membership.verdict()
            yield from self.membership.notes
        for tap, found in (*self.labels, *self.attributes):
            yield f"{tap}, {found.line()}."
        for link in self.links:
            for case in link.cases:
                yield f"{link.tap}, {case.line()}."

    def tables(self) -> Iterator[tuple[str, tuple[str, ...], Rows]]:
        """Title, columns and rows of each table."""
        if self.membership is not None:
            rows = [
                [
                    f"{r.copy} {r.target}",
                    f"{r.attack}, {r.shadows} shadows" if r.shadows else r.attack,
                    r.sees,
                    *_curve(r.curve),
                    f"{r.curve.positives:,} / {r.curve.negatives:,}",
                ]
                for r in self.membership.results
            ]
            caught = [f"caught at {100 * each.fpr:g} %" for each in self.membership.results[0].curve.caught]
            columns = ("model", "attack", "sees", "AUC", "95 %", *caught, "members / others")
            yield "Membership: was this record in the training data?", columns, rows
        questions = (*self.labels, *self.attributes)
        if questions:
            rows = [
                [
                    found.question,
                    tap,
                    f"{found.accuracy:.1f} %",
                    f"{found.interval[0]:.1f} to {found.interval[1]:.1f}",
                    f"{found.prior:.1f} %",
                ]
                for tap, found in questions
            ]
            yield (
                "Read by a network of the attacker's own",
                ("question", "tap", "right", "95 %", "by guessing"),
                rows,
            )
        for link in self.links:
            rows = [
                [
                    case.name,
                    f"{100 * case.identical:.0f} %",
                    *_curve(case.agreement),
                    *_curve(case.likelihood),
                ]
                for case in link.cases
            ]
            columns = ("pair", "equal bytes", *_twice("agreement"), *_twice("likelihood ratio"))
            yield f"Linkability of {link.tap}: told from two random records", columns, rows


def _curve(curve: Curve) -> list[str]:
    low, high = curve.interval
    caught = [
        f"{100 * each.tpr:.1f} %" + ("" if each.resolved else " (no false alarm)") for each in curve.caught
    ]
    return [f"{curve.auc:.3f}", f"{low:.3f} to {high:.3f}", *caught]


def _twice(score: str) -> tuple[str, str, str]:
    return (f"AUC by {score}", "95 %", "caught at 1 %")
