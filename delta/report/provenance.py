"""Where the numbers come from: files, seeds, versions, machines, and the commands that make them again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from delta.report.figures import Figures
from delta.report.markup import Html, element, table
from delta.report.numbers import DASH, count
from delta.report.read import Run

__all__ = ["command_of", "commands_table", "runs_table"]

_ENVIRONMENT = (
    "torch",
    "python",
    "device",
    "cloud_device",
    "processor",
    "machine",
    "cores",
    "threads",
    "weights",
)


def runs_table(runs: Sequence[Run]) -> Html:
    """A row for all runs of a file that differ in their seeds, or in settings that their sections show."""
    alike: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        key = (run.source.partition(", line ")[0], run.kind, *_facts(run.figures))
        alike.setdefault(key, []).append(run)
    rows = []
    for (file, kind, data, records, tee, machine), some in alike.items():
        seeds = dict.fromkeys(_seeds(run.figures) for run in some)
        rows.append([file, kind, count(len(some)), data, records, ", ".join(seeds), tee, machine])
    columns = ["file", "kind", "runs", "data", "records", "seeds", "TEE", "versions and machine"]
    return element("div", table(columns, rows, caption="Runs"), class_="words")


def _facts(figures: Figures) -> tuple[str, str, str, str]:
    """Data, records, TEE and machine."""
    return (
        _first_text(figures, "dataset", "data", "data.name", "source"),
        _records(figures),
        figures.text("tee") or figures.text("environment.tee") or "simulated",
        _environment(figures),
    )


def commands_table(runs: Sequence[Run]) -> Html:
    """The command of each kind of run; capital letters are for what a file of figures does not know."""
    found = dict.fromkeys((run.kind, command_of(run)) for run in runs)
    rows = [[kind, element("code", command)] for kind, command in found]
    return element(
        "div", table(["kind", "command"], rows, caption="Commands that make such figures"), class_="words"
    )


def command_of(run: Run) -> str:
    """A run's own command, where it was written down; else the one of its kind, with what the figures tell."""
    figures = run.figures
    own = figures.text("command")
    if own is not None:
        return own
    seed = figures.number("seed")
    seeded = [] if seed is None else ["--seed", f"{seed:.0f}"]
    data = figures.text("source")
    words: dict[str, list[str]] = {
        "train": ["train", "--config", "FILE.yaml", *seeded],
        "demo": ["demo", *(["--data", data] if data else []), *seeded],
        "bench-latency": ["bench", "latency", *seeded],
        "bench-scale": ["bench", "scale", *seeded],
        "attack": ["attack", "BUNDLE", "--data", data or "DATA", *seeded],
        "membership": ["attack", "BUNDLE", "--attacks", "membership", "--data", data or "DATA", *seeded],
        "frontier": ["frontier", figures.text("sweep.file") or "SWEEP.yaml", "--out", "FOLDER"],
        "audit": ["audit", *_audit(figures), *seeded],
    }
    return shlex.join(["delta", *words[run.kind], "--json", "FILE.json"])


def _audit(figures: Figures) -> list[str]:
    words: list[str] = []
    epsilon, samples, fault = (
        figures.number("claimed.epsilon"),
        figures.number("samples"),
        figures.text("fault"),
    )
    if epsilon is not None:
        words += ["--epsilon", f"{epsilon:.6g}"]
    if samples is not None:
        words += ["--samples", f"{samples:.0f}"]
    return words if fault is None else [*words, "--fault", fault]


def _records(figures: Figures) -> str:
    """Training and test records, however the run names them."""
    training = _first(
        figures, "records.training", "training_records", "data.training", "attacker.auxiliary_records"
    )
    test = _first(figures, "records.test", "records", "data.test", "victims")
    parts = [
        *([f"{count(training)} training"] if training is not None else []),
        *([f"{count(test)} test"] if test is not None else []),
    ]
    return ", ".join(parts) or DASH


def _first(figures: Figures, *paths: str) -> float | None:
    return next((value for path in paths if (value := figures.number(path)) is not None), None)


def _first_text(figures: Figures, *paths: str) -> str:
    return next((value for path in paths if (value := figures.text(path)) is not None), DASH)


def _seeds(figures: Figures) -> str:
    seed = figures.number("seed")
    if seed is not None:
        return f"{seed:.0f}"
    seeds = figures.get("seeds")
    if not isinstance(seeds, list):
        seeds = [one for point in figures.parts("points") for one in _list(point.get("seeds"))]
    known = sorted({one for one in seeds if isinstance(one, int)})
    return ", ".join(map(str, known)) or DASH


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _environment(figures: Figures) -> str:
    found = figures.part("environment")
    parts = []
    for name in _ENVIRONMENT:
        text, number = found.text(name), found.number(name)
        if text is not None:
            parts.append(
                text if name in ("device", "processor", "machine") else f"{name.replace('_', ' ')} {text}"
            )
        elif number is not None:
            parts.append(f"{number:.0f} {name}")
    for name, value in found.part("threads").values.items():
        parts.append(f"{name} threads {value}")
    return ", ".join(parts) or DASH
