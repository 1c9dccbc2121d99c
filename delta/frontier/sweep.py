"""Running a sweep: what is stored is kept, the rest is measured, side by side if asked; times are taken apart."""

from __future__ import annotations

import os
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from delta.bundle.store import load_bundle
from delta.config import canonical_hash
from delta.data.records import DataSplits
from delta.errors import DeltaError
from delta.frontier.cell import Cell, CellFolder
from delta.frontier.grid import Point, SweepConfig, TimingPlan
from delta.frontier.point import Inputs
from delta.frontier.timing import time_point
from delta.models.splitting import Parts
from delta.release.components import computation_hash
from delta.training.checkpoint import Warn
from delta.training.run_config import RunConfig

__all__ = ["Failure", "Work", "cells_of", "data_basis", "figures_of", "measure_missing", "time_points"]

Work = Callable[[Cell, int], None]
"""Measures a cell in a slot, numbered from 0, and stores its figures; raises where it fails."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Failure:
    """A cell that could not be measured, and why, in one line."""

    cell: Cell
    error: str

    def to_json(self) -> dict[str, Any]:
        """For the frontier's list of failures."""
        return {"point": self.cell.point, "seed": self.cell.run.seed, "error": self.error}


def data_basis(run: RunConfig, data: DataSplits, parts: Parts) -> str:
    """What determines figures beside the settings: records, and the model as it is before training."""
    return canonical_hash(
        [
            data.train.fingerprint(),
            data.test.fingerprint(),
            run.model.model_dump(mode="json"),
            computation_hash(parts.model),
        ]
    )


def cells_of(points: Sequence[Point], sweep: SweepConfig, inputs: Inputs) -> list[Cell]:
    """Every point with every seed, in the order of the sweep.

    Raises:
        ConfigError: the data or the model of a configuration is not there, or they do not fit together.
    """
    known: dict[str, str] = {}
    cells = []
    for point in points:
        for run in point.runs:
            names = {"data", "model", "seed"}
            key = canonical_hash(run.model_dump(mode="json", include=names))
            if key not in known:
                known[key] = data_basis(run, *inputs(run))
            cells.append(Cell(point=point.number, run=run, attack=sweep.attack, data=known[key]))
    return cells


def figures_of(cells: Sequence[Cell], folder: Path, *, warn: Warn) -> dict[str, dict[str, Any]]:
    """What is stored of these cells, by identity."""
    found = {cell.identity: CellFolder(folder, cell).figures(warn=warn) for cell in cells}
    return {identity: figures for identity, figures in found.items() if figures is not None}


def measure_missing(
    cells: Sequence[Cell],
    *,
    work: Work,
    parallel: int = 1,
    told: Tell = lambda _: None,
    stop: Callable[[], None] = lambda: None,
) -> list[Failure]:
    """Measure cells; one that fails is told in one line, and the others go on.

    Args:
        cells: those that are not stored.
        work: measures one. With `parallel` above 1 it is called on several threads, and must leave the work itself
            to other processes.
        parallel: cells at a time.
        told: what is done, a line each.
        stop: ends what `work` has started, when this call is interrupted.
    """
    failures: list[Failure] = []

    def ended(cell: Cell, error: str | None) -> None:
        if error is None:
            told(f"{cell.label}: measured")
        else:
            told(f"{cell.label}: failed: {error}")
            failures.append(Failure(cell, error))

    if parallel == 1:
        for cell in cells:
            ended(cell, _attempt(work, cell, 0))
        return failures
    slots = list(range(parallel))

    def one(cell: Cell) -> str | None:
        slot = slots.pop()
        try:
            return _attempt(work, cell, slot)
        finally:
            slots.append(slot)

    with ThreadPoolExecutor(parallel) as pool:
        running = {pool.submit(one, cell): cell for cell in _spread_out(cells)}
        try:
            for future in as_completed(running):
                ended(running[future], future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop()
            raise
    return failures


def _spread_out(cells: Sequence[Cell]) -> list[Cell]:
    """An order in which neighbours share as few fits as there is choice: who shares one waits for it."""
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[canonical_hash([cell.run.private_settings, cell.data])].append(cell)
    turns = zip_longest(*groups.values())
    return [cell for turn in turns for cell in turn if cell is not None]


def time_points(
    cells: Sequence[Cell],
    folder: Path,
    inputs: Inputs,
    *,
    plan: TimingPlan,
    machine: Mapping[str, Any],
    figures: Mapping[str, Mapping[str, Any]],
    told: Tell = lambda _: None,
    warn: Warn,
) -> dict[int, dict[str, Any]]:
    """Time each point once, alone on the machine: what a step costs does not depend on the seed.

    Times of another machine, or taken in another way, are taken anew.

    Args:
        cells: that were measured.
        folder: of the sweep.
        inputs: data and models.
        plan: how to time.
        machine: what tells this machine from others.
        figures: of the cells, by identity.
        told: of each point that is timed.
        warn: told of damage.

    Returns:
        By the point's number, what `delta.frontier.timing.time_point` gives.
    """
    taken: dict[int, dict[str, Any]] = {}
    for cell in cells:
        if cell.point in taken or cell.identity not in figures:
            continue
        place = CellFolder(folder, cell)
        conditions = canonical_hash(
            {
                "cell": cell.identity,
                "plan": plan.model_dump(mode="json"),
                "machine": dict(machine),
                "torch": torch.__version__,
            }
        )
        times = place.times(conditions=conditions, warn=warn)
        if times is None:
            told(f"point {cell.point}: timing the private side")
            times = time_point(
                load_bundle(place.bundle),
                inputs(cell.run)[1].model,
                plan=plan,
                main_only_reads=figures[cell.identity]["main_only_reads"],
            )
            place.keep_times(times, conditions=conditions)
        taken[cell.point] = times
    return taken


def _attempt(work: Work, cell: Cell, slot: int) -> str | None:
    try:
        work(cell, slot)
    except DeltaError as error:
        return " ".join(str(error).split())
    except Exception as error:
        # A defect, or a device out of memory: its text may hold private values, and the other points go on.
        if os.environ.get("DELTA_TRACEBACK") == "1":
            traceback.print_exc()
        return f"internal error ({type(error).__name__}); set DELTA_TRACEBACK=1 to see where"
    return None
