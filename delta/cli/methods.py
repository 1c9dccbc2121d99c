"""`delta methods`: what there is to choose from, and what each rests on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from delta.cli.output import say, table, write_json

__all__ = ["methods"]


def methods(
    json: Annotated[Path | None, typer.Option(help="Write the facts here; - is standard output.")] = None,
) -> None:
    """List the methods: what each protects from the cloud, what that rests on, and whether it trains."""
    from delta.methods.registry import method_class, method_names
    from delta.methods.settings import converts, known_settings

    rows: list[dict[str, Any]] = []
    for name in method_names():
        cls = method_class(name)
        facts = cls.facts
        rows.append(
            {
                "name": name,
                "summary": facts.summary,
                "protects": list(facts.protects),
                "rests_on": list(facts.rests_on),
                "keeps": sorted(facts.keeps),
                "trains": facts.trains,
                "offloads": facts.offloads,
                "falls_back": facts.falls_back,
                "converts": converts(cls),
                "settings": list(known_settings(cls)),
            }
        )
    write_json(json, {"methods": rows, "tee": "simulated"})
    if str(json) == "-":
        return
    table(
        "Methods (tee: simulated)",
        ["method", "protects", "rests on", "keeps", "trains"],
        [
            [
                row["name"],
                ", ".join(row["protects"]) or "nothing",
                ", ".join(row["rests_on"]),
                " ".join(row["keeps"]) or "none",
                "yes" if row["trains"] else "delta train" if row["name"] == "delta" else "no",
            ]
            for row in rows
        ],
    )
    for row in rows:
        settings = f"; settings: {', '.join(row['settings'])}" if row["settings"] else ""
        say(f"{row['name']}: {row['summary']}{settings}")
    say("a bundle of one: delta convert METHOD --model TARGET --out DIR; of delta: delta train --config FILE")
