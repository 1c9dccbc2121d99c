"""`delta ledger`: what each subject has spent, and ledgers as files to keep or to join."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from delta.cli.output import check_writable, say, table, warn, write_json

if TYPE_CHECKING:
    from delta.privacy.ledger import Budget, Ledger, Spent

__all__ = ["export", "named", "replay", "show", "spent_figures"]

_ROWS = 50
"""Subjects in the table; `--json` has them all."""


def show(
    path: Annotated[Path, typer.Argument(help="The ledger's file.")],
    delta: Annotated[float, typer.Option(help="δ at which ε displays μ.")] = 1e-5,
    json: Annotated[Path | None, typer.Option(help="Write the figures here; - is standard output.")] = None,
) -> None:
    """Show what each subject has spent, the largest spender first."""
    from delta.privacy.gaussian import epsilon_of
    from delta.privacy.ledger_file import read_ledger

    epsilon_of(mu=0.0, delta=delta)  # a δ out of range is refused before anything is read
    check_writable(json)
    ledger = read_ledger(path)
    budget = ledger.budget
    figures = {
        "ledger": str(path),
        "budget": budget,
        "budget_epsilon": None if isinstance(budget, str) else epsilon_of(mu=budget, delta=delta),
        "delta": delta,
        "subjects": _subjects(ledger, delta),
    }
    write_json(json, figures)
    if str(json) != "-":
        _print(path, figures)


def export(
    path: Annotated[Path, typer.Argument(help="The ledger's file.")],
    out: Annotated[Path, typer.Option(help="File to write; an existing one is never replaced.")],
) -> None:
    """Write a ledger anew, as one file that stands for itself."""
    from delta.privacy.disk_ledger import export as export_ledger
    from delta.privacy.ledger_file import read_ledger

    count = export_ledger(read_ledger(path), out)
    say(f"{count} entries in {out}")


def replay(
    files: Annotated[list[Path], typer.Argument(help="Ledgers whose entries are taken over.")],
    into: Annotated[Path, typer.Option(help="The ledger that takes them; a new one is made.")],
) -> None:
    """Enter what other ledgers hold; equal entries cost nothing, and no budget refuses what was sent."""
    from delta.privacy.disk_ledger import DiskLedger
    from delta.privacy.disk_ledger import replay as replay_ledgers
    from delta.privacy.ledger_file import read_ledger

    for file in files:
        read_ledger(file)  # a fault there leaves no new ledger behind
    with DiskLedger(into, warn=warn) as ledger:
        new = replay_ledgers(files, ledger)
        say(f"{new} new entries, {len(ledger.entries())} in all in {into}")


def named(subject: str) -> str:
    """A subject as people read it."""
    return subject or "(unknown, charged as one person)"


def spent_figures(spent: Spent, budget: Budget, *, delta: float) -> dict[str, Any]:
    """What a subject has spent: `null` for a μ or ε without bound, and for what is left of no budget.

    Args:
        spent: of the subject.
        budget: of each subject.
        delta: δ at which ε displays the joint μ.
    """
    from delta.privacy.gaussian import epsilon_of

    joint = spent.joint_mu
    left = None if isinstance(budget, str) else math.sqrt(max(0.0, budget**2 - joint**2))
    return {
        "mu": _finite(spent.mu),
        "label_epsilon": spent.label_epsilon,
        "joint_mu": _finite(joint),
        "epsilon": _finite(epsilon_of(mu=joint, delta=delta)),
        "releases": spent.releases,
        "labels": spent.labels,
        "left_mu": left,
    }


def _subjects(ledger: Ledger, delta: float) -> list[dict[str, Any]]:
    spent = {subject: ledger.spent(subject) for subject in {entry.subject: 0 for entry in ledger.entries()}}
    order = sorted(spent, key=lambda subject: (-spent[subject].joint_mu, subject))
    return [
        {"subject": subject, **spent_figures(spent[subject], ledger.budget, delta=delta)} for subject in order
    ]


def _print(path: Path, figures: dict[str, Any]) -> None:
    delta, rows = figures["delta"], figures["subjects"]
    columns = ["subject", "μ", f"ε at δ = {delta:g}", "releases", "labels", "label ε", "left (μ)"]
    table(
        f"Ledger {path}",
        columns,
        [
            [
                named(row["subject"]),
                _number(row["joint_mu"]),
                _number(row["epsilon"]),
                str(row["releases"]),
                str(row["labels"]),
                f"{row['label_epsilon']:.4g}",
                "unlimited" if figures["budget"] == "unlimited" else f"{row['left_mu']:.4g}",
            ]
            for row in rows[:_ROWS]
        ],
    )
    if len(rows) > _ROWS:
        say(f"and {len(rows) - _ROWS} subjects that have spent no more than these; --json has them all")
    if figures["budget"] == "unlimited":
        say("budget of a subject: unlimited")
    else:
        say(f"budget of a subject: μ = {figures['budget']:.4g}, ε = {figures['budget_epsilon']:.4g}")
    say("μ and ε are of all releases and labels together; label ε is the sum over its labels")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> str:
    return "no claim" if value is None else f"{value:.4g}"
