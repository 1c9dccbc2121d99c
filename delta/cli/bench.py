"""`delta bench`: what Delta costs on this machine, as ratios within one run."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from delta.cli.output import say, table, write_json

__all__ = ["micro"]


def micro(
    part: Annotated[
        Literal["all", "decomposition", "private-path", "runtimes", "stream"],
        typer.Option(help="Which measurements to make; runtimes, not in all, compiles for some minutes."),
    ] = "all",
    rounds: Annotated[int, typer.Option(min=3, help="Rounds; each measures every candidate once.")] = 15,
    json: Annotated[Path | None, typer.Option(help="Write the figures here; - is standard output.")] = None,
) -> None:
    """Decomposition, private path and runtimes on one thread, and PredictStream beside a bare gRPC echo."""
    import torch

    figures: dict[str, Any] = {
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": torch.get_num_threads(),
        }
    }
    quiet = str(json) == "-"
    if part in ("all", "decomposition"):
        from delta.bench.micro_decomposition import measure_decomposition

        figures["decomposition"] = measure_decomposition(rounds=rounds)
        if not quiet:
            _show_decomposition(figures["decomposition"])
    if part in ("all", "private-path"):
        from delta.bench.micro_private_path import measure_private_path

        figures["private_path"] = {
            f"rank {rank}": measure_private_path(rounds=rounds, rank=rank) for rank in (8, 16)
        }
        if not quiet:
            _show_private_path(figures["private_path"])
    if part == "runtimes":
        from delta.bench.micro_private_path import measure_runtimes

        figures["runtimes"] = measure_runtimes(rounds=rounds)
        if not quiet:
            _show_runtimes(figures["runtimes"])
    if part in ("all", "stream"):
        figures["stream"] = _stream(rounds)
        if not quiet:
            _show_stream(figures["stream"])
    write_json(json, figures)


def _stream(rounds: int) -> dict[str, Any]:
    from delta_client.bench_stream import measure_stream
    from delta_server.launch import EchoProcess, ServerProcess

    from delta.bench.zero_method import zero_bundle
    from delta.bundle.store import save_bundle

    bundle = zero_bundle()
    with tempfile.TemporaryDirectory() as folder:
        path = save_bundle(bundle, Path(folder) / "bundle")
        with (
            ServerProcess.start(path, plugins=["delta.bench.zero_method"], threads=1) as server,
            EchoProcess.launch() as echo,
        ):
            return measure_stream(server.address, echo.address, bundle.manifest.binding, rounds=rounds)


def _show_decomposition(figures: dict[str, dict[str, float]]) -> None:
    rows = []
    for name, row in figures.items():
        times = (
            f"{row['median_ms']:.2f} ({row['min_ms']:.2f} to {row['max_ms']:.2f})"
            if "median_ms" in row
            else ""
        )
        ratios = ", ".join(
            f"{key.replace('_', ' ')} {value:.3g}" for key, value in row.items() if not key.endswith("_ms")
        )
        rows.append([name.replace("_", " "), times, ratios])
    table(
        "Decomposition and release, [32, 64, 32, 32] float32, one thread",
        ["what", "median ms (range)", "ratios in this run"],
        rows,
    )


def _show_private_path(figures: dict[str, dict[str, dict[str, float]]]) -> None:
    for setting, parts in figures.items():
        rows = [
            [
                name.replace("_", " "),
                _times(row),
                f"{row['of_release']:.2f}" if "of_release" in row else "",
                f"{row['speedup']:.2f} ({row['speedup_min']:.2f} to {row['speedup_max']:.2f})"
                if "speedup" in row
                else "",
            ]
            for name, row in parts.items()
        ]
        table(
            f"Delta's private path by parts, ResNet-18 at layer1, 32 records, one thread, {setting}",
            ["what", "median ms (range)", "of the release", "passes over one pass"],
            rows,
        )


def _show_runtimes(figures: dict[str, dict[str, float]]) -> None:
    rows = [
        [
            name,
            _times(row),
            f"{row['speedup']:.2f} ({row['speedup_min']:.2f} to {row['speedup_max']:.2f})",
            f"{row['error']:.1e}",
        ]
        for name, row in figures.items()
    ]
    table("Runtimes, one thread", ["what", "median ms (range)", "over eager", "logit error"], rows)


def _times(row: dict[str, float]) -> str:
    return f"{row['median_ms']:.2f} ({row['min_ms']:.2f} to {row['max_ms']:.2f})"


def _show_stream(figures: dict[str, Any]) -> None:
    rows = []
    for row in figures["rows"]:
        cells = [f"{row['records_per_message']} x {row['in_flight']}", _rate(row["echo"])]
        for driver in ("callback", "blocking"):
            cells += [_rate(row[driver]), f"{row[driver]['ratio']:.2f}"]
        rows.append(cells)
    table(
        f"PredictStream on loopback, {figures['payload_bytes']} bytes a record, a cloud model that costs nothing: "
        "records/s, median (range), and ratio to the echo",
        ["records a message x in flight", "bare echo", "callback", "ratio", "blocking thread", "ratio"],
        rows,
    )
    size = figures["bytes_per_record"]
    say(f"bytes a record, handshake included: {size['up']:.1f} up, {size['down']:.1f} down")


def _rate(figures: dict[str, float]) -> str:
    return f"{figures['median']:,.0f} ({figures['min']:,.0f} to {figures['max']:,.0f})"
