"""Benchmark rows as tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from delta.cli.output import say, table
from delta.errors import ConfigError

if TYPE_CHECKING:
    from delta.bench.rows import Row

_ACCURACIES = (
    ("delta", "delta", "private_macs"),
    ("main-only", "main_only", "main_only_macs"),
)

__all__ = ["draw", "draw_accuracy", "show_rows", "show_scale"]


def show_rows(rows: Sequence[Row]) -> None:
    """A table for each network, batch, thread count and link."""
    settings = list(dict.fromkeys(_setting(row) for row in rows))
    for network, batch, threads, link in settings:
        some = [row for row in rows if _setting(row) == (network, batch, threads, link)]
        some.sort(key=lambda row: (row["phase"] != "infer", row["phase"].split()[0]))
        table(
            f"{network}, batch {batch}, {threads} private thread(s)"
            + (f", {link}" if link != "none" else ""),
            [
                "method",
                "phase",
                "ms (range)",
                "private / cloud ms",
                "vs private-only",
                "vs main-only",
                "bytes up / down a record",
                "round trips",
                "private / cloud MACs",
                "MiB",
            ],
            [_cells(row) for row in some],
        )
        for row in some:
            if "precompute_ms" in row["extras"]:
                say(
                    f"{row['method']}: {row['extras']['precompute_ms']:,.2f} ms of precomputation a call, which can be "
                    "done beforehand, on the private side, come on top"
                )
            if row["extras"].get("setup_bytes_up", 0) > 2**20:
                size = row["extras"]["setup_bytes_up"] / 2**20
                say(f"{row['method']}: {size:.1f} MiB of keys go up once a session")
        if any(row["method"] == "three-leg-race" for row in some):
            say("three-leg-race: at the ranks of these weights; trained ones (--weights) have lower ranks")


def _setting(row: Row) -> tuple[str, int, int, str]:
    return row["network"], row["batch"], row["threads"], row["link"]


def _cells(row: Row) -> list[str]:
    batch = row["batch"]
    return [
        row["method"] + ("" if row["runtime"] == "eager" else f" ({row['runtime']})"),
        row["phase"],
        f"{row['ms_median']:.2f} ({row['ms_min']:.2f} to {row['ms_max']:.2f})",
        f"{_ms(row['private_ms'])} / {_ms(row['cloud_ms'])}",
        _times(row["speedup_vs_private_only"]),
        _times(row["speedup_vs_main_only"]),
        f"{_count(row['bytes_up'], batch)} / {_count(row['bytes_down'], batch)}",
        _count(row["round_trips"], 1),
        f"{_macs(row['private_macs'])} / {_macs(row['cloud_macs'])}",
        _ms(row["peak_private_mib"]),
    ]


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _count(value: float | None, records: int) -> str:
    return "–" if value is None else f"{value / records:,.0f}"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}x" if ratio >= 0.1 else f"{ratio:.2g}x"


def _macs(count: float | None) -> str:
    return "–" if count is None else f"{count / 1e6:.2f} M" if count else "0"


def show_scale(axis: str, rows: Sequence[Row]) -> None:
    """One table of an axis."""
    table(
        f"over {axis}, one private thread",
        [
            axis,
            "method",
            "network",
            "ms (range)",
            "records/s of all clients",
            "bytes up / down a record",
            "MACs",
            "MiB",
        ],
        [
            [
                str(row[axis]),
                row["method"],
                row["network"],
                f"{row['ms_median']:.2f} ({row['ms_min']:.2f} to {row['ms_max']:.2f})",
                f"{row['records_per_s']:,.0f}",
                f"{row['bytes_up'] / row['batch']:,.0f} / {row['bytes_down'] / row['batch']:,.0f}",
                f"{_macs(row['private_macs'])} / {_macs(row['cloud_macs'])}",
                f"{row['peak_private_mib']:.2f}",
            ]
            for row in rows
        ],
    )


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Latency and bytes of all rows, and the timeline of one inference of Delta."""
    from delta.bench.plots import plot_bytes, plot_latency, plot_timeline

    plot_latency([row for row in rows if row["phase"] != "round trip"], folder / "latency.png")
    sent = [row for row in rows if row["phase"] == "infer" and row["bytes_up"]]
    if sent:
        plot_bytes(sent, folder / "bytes.png")
    for row in rows:
        if row["timeline"]:
            name = f"timeline-{row['private_macs'] / 1e6:.1f}M-{row['threads']}t-b{row['batch']}"
            plot_timeline(row["timeline"], folder / f"{name}.png")


def draw_accuracy(figures: Path, folder: Path) -> None:
    """Accuracy against private MACs, from the results of `scripts/measure_training.py`.

    Raises:
        ConfigError: the file holds something else.
    """
    from delta.bench.plots import plot_accuracy

    try:
        runs = [json.loads(line) for line in figures.read_text().splitlines()]
        points = [
            {"label": label, "private_macs": run[macs], "accuracy": run["accuracy"][key] / 100}
            for run in runs
            for label, key, macs in _ACCURACIES
            if run["accuracy"][key] is not None and run["privacy"]["epsilon"] is None
        ]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{figures} holds no results of scripts/measure_training.py, a JSON object a line"
        ) from None
    means: dict[tuple[str, float], list[float]] = {}
    for point in points:
        means.setdefault((point["label"], point["private_macs"]), []).append(point["accuracy"])
    plot_accuracy(
        [
            {
                "label": label,
                "private_macs": macs,
                "accuracy": statistics.mean(found),
                "low": min(found),
                "high": max(found),
            }
            for (label, macs), found in means.items()
        ],
        folder / "accuracy.png",
    )
