"""`delta demo`: the whole story on real images, on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from delta.cli.output import check_writable, progress, say, table, write_json, write_text

if TYPE_CHECKING:
    from delta_client import Client

    from delta.bundle.store import Bundle
    from delta.demo.experiment import Launch
    from delta.release.noise import NoiseKey

__all__ = ["demo"]


def demo(
    data: Annotated[
        str,
        typer.Option(
            help="embedded, or a data set: an image folder, a CIFAR archive, a folder of IDX files."
        ),
    ] = "embedded",
    limit: Annotated[int, typer.Option(min=100, help="Training images at most.")] = 5000,
    offload: Annotated[
        Literal["residual", "principal"], typer.Option(help="Stream of the main row.")
    ] = "residual",
    out: Annotated[Path, typer.Option(help="Folder for bundles, summary and page.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
    include_records: Annotated[bool, typer.Option(help="Show records of your own data on the page.")] = False,
    download: Annotated[
        bool, typer.Option(help="Fetch the archive of cifar10:FOLDER or cifar100:FOLDER first.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the summary here too.")] = None,
) -> None:
    """Train or reuse a bundle, start a cloud as a second process, classify real images across the boundary."""
    from delta.data.load import download_dataset, load_dataset
    from delta.demo import DemoSettings, render_page, run_demo, summarise
    from delta.demo.summary import headline, verdict
    from delta.errors import InputError
    from delta.report.charts import plotly_script

    started = time.perf_counter()
    check_writable(json)
    plotly_script()  # of the page: its absence is told before minutes of work
    settings = DemoSettings(
        offload=offload, seed=seed, device=device, show_records=data == "embedded" or include_records
    )
    if download:
        say(f"downloaded {download_dataset(data)}")
    splits = load_dataset(data, limit=limit, seed=seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be made: {error.strerror}; choose another folder") from None
    check_writable(out / "summary.json")
    say(
        f"data: {splits.train.name}, {len(splits.train.labels):,} training and {len(splits.test.labels):,} test images"
    )
    with progress() as watch:
        result = run_demo(splits, settings, out=out, launch=_launch(out), connect=_connect, progress=watch)
    shown = settings.gallery if settings.show_records else 0
    summary = summarise(result, source=data, examples=shown)
    page = render_page(result, gallery=settings.gallery, show_records=settings.show_records)
    write_json(out / "summary.json", summary)
    write_text(out / "report.html", page)
    write_json(json, summary)
    columns, rows = headline(result)
    table("What it cost and what it gave away (accuracies on the test set; tee: simulated)", columns, rows)
    for row in result.rows.values():
        if row.claim.epsilon is not None:
            say(f"claim of the row with noise: {row.claim.claim}")
            for condition in row.claim.conditions:
                say(f"  {condition}")
    say(verdict(result))
    say(f"page: {out / 'report.html'}   figures: {out / 'summary.json'}   bundle: {result.bundle}")
    say(f"took {time.perf_counter() - started:.0f} s")


def _launch(out: Path) -> Launch:
    from delta_server.launch import ServerProcess

    @contextmanager
    def launch(folders: list[Path], threads: int) -> Iterator[str]:
        with ServerProcess.start(folders, threads=threads, log_path=out / "cloud.log") as server:
            say(f"cloud: process {server.pid}, listening on {server.address}")
            yield server.address

    return launch


def _connect(bundle: Bundle, address: str, key: NoiseKey) -> Client:
    from delta_client import Client

    return Client(bundle, cloud=address, key=key)
