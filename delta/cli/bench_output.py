"""Benchmark rows as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from delta.cli.output import say, table

if TYPE_CHECKING:
    from delta.bench.rows import Row

__all__ = ["draw", "show_rows", "show_scale"]


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


def _setting(row: Row) -> tuple[str, int, int, str]:
    return row["network"], row["batch"], row["threads"], row["link"]


def _cells(row: Row) -> list[str]:
    batch = row["batch"]
    return [
        row["method"] + ("" if row["runtime"] == "eager" else f" ({row['runtime']})"),
        row["phase"],
        f"{row['ms_median']:.2f} ({row['ms_min']:.2f} to {row['ms_max']:.2f})",
        f"{row['private_ms']:.2f} / {row['cloud_ms']:.2f}",
        _times(row["speedup_vs_private_only"]),
        _times(row["speedup_vs_main_only"]),
        f"{row['bytes_up'] / batch:,.0f} / {row['bytes_down'] / batch:,.0f}",
        f"{row['round_trips']:.0f}",
        f"{_macs(row['private_macs'])} / {_macs(row['cloud_macs'])}",
        f"{row['peak_private_mib']:.2f}",
    ]


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}x" if ratio >= 0.1 else f"{ratio:.2g}x"


def _macs(count: float) -> str:
    return f"{count / 1e6:.2f} M" if count else "0"


def show_scale(axis: str, rows: Sequence[Row]) -> None:
    """One table of an axis."""
    table(
        f"over {axis}, one private thread",
        [
            axis,
            "method",
            "network",
            "ms (range)",
            "records/s a client",
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
                f"{1e3 * row['batch'] / row['ms_median']:,.0f}",
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
    timelines = [row["timeline"] for row in rows if row["timeline"]]
    if timelines:
        plot_timeline(timelines[0], folder / "timeline.png")
