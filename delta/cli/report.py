"""`delta report`: one HTML page, which opens offline, from the figures of any runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from delta.cli.output import check_writable, say, write_text

__all__ = ["report"]


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Files that commands wrote with --json: train, demo, bench, attack, audit, frontier; "
            "or one JSON object a line."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page; one there is replaced.")] = Path("report.html"),
    include_records: Annotated[
        bool, typer.Option(help="Show pictures of records, where a run of your own data holds some.")
    ] = False,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
) -> None:
    """Make one self-contained page: a summary in plain words, charts, records, tables, seeds and versions."""
    from delta.report import read_runs, render_report

    check_writable(out)
    found = read_runs(runs)
    page = render_report(found, title=title, include_records=include_records)
    write_text(out, page)
    plural = "run" if len(found) == 1 else "runs"
    say(f"page: {out} ({len(page.encode()) / 2**20:.1f} MiB, opens offline, from {len(found)} {plural})")
