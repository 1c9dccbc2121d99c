"""`delta frontier`: a sweep over settings, every point trained, timed and attacked."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from delta.cli.output import check_writable, complain, progress, say, table, warn, write_json
from delta.errors import ConfigError

if TYPE_CHECKING:
    from delta.data.records import DataSplits
    from delta.frontier.cell import Cell
    from delta.models.splitting import Parts
    from delta.training.run_config import RunConfig

__all__ = ["frontier", "frontier_point"]

FAILED = 1
"""Exit code where a point could not be measured."""


def frontier(
    sweep: Annotated[Path, typer.Argument(help="YAML file of a sweep; see configs/frontier-*.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder of the sweep, where one that was cut goes on.")],
    device: Annotated[
        str | None, typer.Option(help="Of training and attacks: cpu, cuda or cuda:N; times are the CPU's.")
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(help="Numbers of the GPUs that workers take in turn, such as 0,1.")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Points at a time; default: one, or one for each of --gpus.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="KEY=VALUE of every run, or of the sweep's attack, timing or seeds, in YAML; repeatable.",
        ),
    ] = None,
    only: Annotated[str | None, typer.Option(help="Points by their numbers, such as 1,4-6.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures here; - is standard output.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for charts.")] = None,
) -> None:
    """Sweep over settings and measure each point: accuracy with controls, private time, bytes, ε, and leakage.

    Runs in this process (with --parallel in workers) with a cloud of its own, and releases nothing. What is measured
    already is kept: the same command goes on. Exit code 1 where a point failed.
    """
    from delta.device import device_of
    from delta.frontier.grid import SweepConfig, chosen_points
    from delta.frontier.leakage import check_attack
    from delta.frontier.result import frontier_json
    from delta.frontier.sweep import cells_of, figures_of, measure_missing, time_points
    from delta.frontier.table import COLUMNS, summary_lines, table_rows
    from delta.training.folder_lock import folder_lock

    config, common = SweepConfig.read(sweep, changes=change or ())
    where = device or ("cuda" if gpus is not None else None)
    common = (*((f"device={where}",) if where is not None else ()), *common)
    cards = _cards(gpus, where)
    workers = parallel or max(1, len(cards))
    points = chosen_points(config.expanded(common=common), only)
    for name in sorted({run.device for point in points for run in point.runs}):
        device_of(name)
    result = out / "frontier.json"
    check_writable(json, result, None if plots is None else plots / "frontier-leakage.png")
    _check_charts(plots)
    tell: Callable[[str], None] = say if str(json) != "-" else lambda _: None
    inputs = _Inputs()
    with folder_lock(out):
        cells = cells_of(points, config, inputs)
        data = inputs(cells[0].run)[0]
        check_attack(config.attack, data)
        found = figures_of(cells, out, warn=warn)
        missing = [cell for cell in cells if cell.identity not in found]
        tell(
            f"data: {data.name}, {len(data.train):,} training and {len(data.test):,} test records; "
            f"{len(points)} points of {len(config.seeds)} seeds, {len(cells) - len(missing)} measured before"
        )
        failures = []
        if missing and workers == 1 and not cards:
            with progress() as watch:
                failures = measure_missing(missing, work=_inline(out, inputs, watch), told=tell)
        elif missing:
            from delta.cli.frontier_workers import Workers

            inputs.forget()  # each worker loads its own
            crew = Workers(out, parallel=workers, cards=cards, told=tell)
            failures = measure_missing(
                missing, work=crew.measure, parallel=workers, told=tell, stop=crew.stop
            )
        found = figures_of(cells, out, warn=warn)
        machine = _machine(where)
        times = time_points(
            cells, out, inputs, plan=config.timing, machine=_processor_of(machine), figures=found, told=tell,
            warn=warn,
        )  # fmt: skip
        figures = frontier_json(
            config, points, cells, data, figures=found, times=times, failures=failures, environment=machine,
            file=str(sweep),
        )  # fmt: skip
        write_json(result, figures)
    write_json(json, figures)
    if plots is not None and figures["points"]:
        from delta.frontier.charts import draw_all

        for path in draw_all(figures, plots):
            tell(f"chart: {path}")
    if str(json) != "-":
        title = (
            f"{config.name}: accuracy, cost and leakage (tee: simulated; {config.timing.threads} thread(s))"
        )
        if figures["points"]:
            table(title, COLUMNS, table_rows(figures))
            for line in summary_lines(figures):
                say(line)
        say(
            f"figures: {result}   choose with: delta choose {shlex.quote(str(result))} --max-ssim … --min-accuracy …"
        )
    for failure in failures:
        complain(f"{failure.cell.label}: {failure.error}")
    if failures:
        raise typer.Exit(FAILED)


def frontier_point(job: Annotated[Path, typer.Argument(help="What to measure, as JSON.")]) -> None:
    """Measure one point of a sweep: what `delta frontier --parallel` starts. It ends when its starter has."""
    from delta.cli.frontier_workers import end_with_starter, read_job

    end_with_starter()
    folder, cell = read_job(job)

    def told(stage: str, done: int, total: int) -> None:
        if done == 1:
            typer.echo(stage)

    _inline(folder, _Inputs(), told)(cell, 0)


class _Inputs:
    """Data and models of runs; records that were loaded last are kept, a model is built anew each time."""

    def __init__(self) -> None:
        self._data: dict[str, DataSplits] = {}

    def __call__(self, run: RunConfig) -> tuple[DataSplits, Parts]:
        from delta.cli.run_inputs import build_parts, load_data
        from delta.config import canonical_hash

        key = canonical_hash(run.model_dump(mode="json", include={"data", "seed"}))
        if key not in self._data:
            self._data = {key: load_data(run)}
        return self._data[key], build_parts(run, self._data[key])

    def forget(self) -> None:
        """Let go of the records."""
        self._data = {}


def _inline(
    out: Path, inputs: _Inputs, watch: Callable[[str, int, int], None]
) -> Callable[[Cell, int], None]:
    """Measures in this process."""
    from delta.frontier.cell import CellFolder
    from delta.frontier.leakage import attack_bundle
    from delta.frontier.point import measure_cell

    def work(cell: Cell, _: int) -> None:
        measure_cell(
            cell,
            CellFolder(out, cell),
            inputs,
            attack=attack_bundle,
            progress=lambda stage, done, total: watch(f"{cell.label}: {stage}", done, total),
            warn=warn,
        )

    return work


def _cards(gpus: str | None, device: str | None) -> tuple[str, ...]:
    if gpus is None:
        return ()
    if device != "cuda":
        raise ConfigError(f"--gpus is of --device cuda, and the device is {device}; leave one of the two out")
    names = tuple(name.strip() for name in gpus.split(","))
    if not all(name.isascii() and name.isdigit() for name in names):
        raise ConfigError(f"--gpus {gpus!r} names no GPUs; give their numbers, such as 0,1")
    return names


def _check_charts(plots: Path | None) -> None:
    """Refuse charts that could not be drawn after hours of work."""
    if plots is None:
        return
    from delta.bench.plot_style import figure

    with figure(1.0, 1.0):
        return


def _machine(device: str | None) -> dict[str, Any]:
    from delta.cli.bench_processes import environment

    found = environment(device or "cpu")
    return {
        "device": found.pop("cloud_device"),
        **found,
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or None,
    }


def _processor_of(machine: dict[str, Any]) -> dict[str, Any]:
    return {name: machine[name] for name in ("machine", "processor", "cores")}
