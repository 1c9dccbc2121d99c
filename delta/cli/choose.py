"""`delta choose`: the cheapest point of a frontier within limits, or which limit cannot be met."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from delta.cli.output import check_writable, say, write_json

__all__ = ["INFEASIBLE", "choose"]

INFEASIBLE = 10
"""Exit code where nothing keeps every limit."""


def choose(
    frontier: Annotated[Path, typer.Argument(help="JSON of delta frontier, such as OUT/frontier.json.")],
    max_ssim: Annotated[
        float | None, typer.Option(help="Inversion SSIM under the strongest attack, 0 to 1.")
    ] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Of Delta, percent.")] = None,
    max_private_ms: Annotated[
        float | None, typer.Option(help="Private time of a batch as the sweep timed it, ms.")
    ] = None,
    max_matching: Annotated[
        float | None, typer.Option(help="Images matched among the candidates, top-1, percent.")
    ] = None,
    max_label_leak: Annotated[
        float | None, typer.Option(help="Labels that the cloud guesses by itself, percent.")
    ] = None,
    max_epsilon: Annotated[
        float | None, typer.Option(help="ε of a release; one without noise has none.")
    ] = None,
    max_bytes: Annotated[float | None, typer.Option(help="Sent to the cloud, bytes a record.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures here; - is standard output.")] = None,
) -> None:
    """Name the cheapest point of a frontier (in private time) that keeps every limit, and the command that trains it.

    A model without a cloud that does, at no higher price, is named first. Nothing is sent or trained. Exit code 10
    where nothing keeps every limit; it then says how far each is from what can be had.
    """
    from delta.frontier.choice_text import choice_json, choice_lines
    from delta.frontier.choose import choose as pick
    from delta.frontier.choose import limits_of
    from delta.frontier.option import options_of, read_frontier

    check_writable(json)
    limits = limits_of(
        {
            "min_accuracy": min_accuracy,
            "max_ssim": max_ssim,
            "max_matching": max_matching,
            "max_label_leak": max_label_leak,
            "max_epsilon": max_epsilon,
            "max_private_ms": max_private_ms,
            "max_bytes": max_bytes,
        }
    )
    found = read_frontier(frontier)
    choice = pick(options_of(found), limits)
    write_json(json, choice_json(choice, found))
    if str(json) != "-":
        for line in choice_lines(choice, found):
            say(line)
    if choice.chosen is None:
        raise typer.Exit(INFEASIBLE)
