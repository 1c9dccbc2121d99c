#!/usr/bin/env python3
"""Print the rows of `delta bench latency --json FILE` as the Markdown tables of docs/benchmarks.md.

python scripts/benchmark_table.py docs/results/benchmark-two-cores.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def main() -> None:
    """Print a table for each network, batch and thread count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    rows = json.loads(parser.parse_args().file.read_text())["rows"]
    for setting in dict.fromkeys(_setting(row) for row in rows):
        network, batch, threads, link = setting
        print(
            f"\n{network}, batch {batch}, {threads} private thread(s)"
            + (f", {link}" if link != "none" else "")
        )
        print(table([row for row in rows if _setting(row) == setting]))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, inference first."""
    lines = [
        "| method | phase | ms (range) | private / cloud ms | vs private-only | vs main-only | bytes up / down "
        "a record | round trips | private / cloud MACs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["phase"] != "infer", row["phase"] == "round trip")):
        batch = row["batch"]
        cells = [
            row["method"] + ("" if row["runtime"] == "eager" else f" ({row['runtime']})"),
            row["phase"],
            f"{_ms(row['ms_median'])} ({_ms(row['ms_min'])} to {_ms(row['ms_max'])})",
            f"{_ms(row['private_ms'])} / {_ms(row['cloud_ms'])}",
            _times(row["speedup_vs_private_only"]),
            _times(row["speedup_vs_main_only"]),
            f"{_count(row['bytes_up'], batch)} / {_count(row['bytes_down'], batch)}",
            _count(row["round_trips"], 1),
            f"{_macs(row['private_macs'])} / {_macs(row['cloud_macs'])}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _setting(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["network"], row["batch"], row["threads"], row["link"]


def _count(value: float | None, records: int) -> str:
    return "–" if value is None else f"{value / records:,.0f}"


def _macs(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e6:.1f} M"


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.1f}×" if ratio >= 1 else f"{ratio:.2g}×"


if __name__ == "__main__":
    main()
