#!/usr/bin/env python3
"""Run `delta train` over seeds, private budgets and noise, and print the table of docs/results.md.

    python scripts/measure_training.py --config configs/cifar10-resnet18.yaml --data DIR --device cuda \
        --gpus 0,1 --seeds 0,1,2 --private-macs 15000000,50000000 --noise none,8,128,1024 --out runs/results
    python scripts/measure_training.py --table docs/results/cifar10-resnet18.jsonl

Runs of one seed and budget share their checkpoints, so stage 1, the noiseless control and the main-only model are
trained once; several seeds and budgets run side by side, on the GPUs in turn. A run that is there already is not
repeated, so that a sweep that was cut goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

KEYS = ("private_only", "main_alone", "delta", "random_bits", "noiseless_bits", "main_only")


def main() -> None:
    """Sweep unless only a table is asked for, then print it."""
    options = _parser().parse_args()
    if options.table is None:
        sweep(options)
        options.table = options.out / "results.jsonl"
    rows = [json.loads(line) for line in options.table.read_text().splitlines()]
    print(table(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--config", type=Path, default=Path("configs/cifar10-resnet18.yaml"))
    add("--data", help="another source than the configuration's")
    add("--device", default="cpu")
    add("--gpus", default="", help="numbers of the GPUs that runs take in turn")
    add("--parallel", type=int, default=4, help="runs side by side")
    add("--seeds", default="0,1,2")
    add("--private-macs", default="15000000,50000000")
    add("--noise", default="none,8,128,1024", help="none, or epsilons a release")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to delta train")
    add("--out", type=Path, default=Path("runs/results"))
    add("--table", type=Path, help="print the table of a file of results, and run nothing")
    return parser


def sweep(options: argparse.Namespace) -> None:
    """Run what is not there yet, and gather the figures of all runs."""
    options.out.mkdir(parents=True, exist_ok=True)
    gpus = cycle(options.gpus.split(",") if options.gpus else [None])
    cells = [
        (int(seed), int(macs), next(gpus))
        for seed in options.seeds.split(",")
        for macs in options.private_macs.split(",")
    ]
    with ThreadPoolExecutor(options.parallel) as pool:
        failures = [
            line for found in pool.map(lambda cell: _sequence(options, *cell), cells) for line in found
        ]
    files = sorted(options.out.glob("s*/summary.json"))
    lines = [json.dumps(json.loads(path.read_text())) for path in files]
    (options.out / "results.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if failures:
        sys.exit(f"{len(failures)} runs failed; their logs lie beside their folders in {options.out}")


def _sequence(options: argparse.Namespace, seed: int, macs: int, gpu: str | None) -> list[str]:
    """All noise levels of one seed and budget; what failed."""
    failures = []
    for noise in options.noise.split(","):
        out = options.out / f"s{seed}-{macs}-{noise}"
        if (out / "summary.json").exists():
            continue
        command = [sys.executable, "-m", "delta.cli", "train", "--config", str(options.config)]
        command += ["--device", options.device, "--seed", str(seed), "--out", str(out)]
        command += ["--checkpoints", str(options.out / f"checkpoints-s{seed}-{macs}")]
        command += ["--data", options.data] if options.data else []
        changes = [f"main.private_macs={macs}", f"noise={_noise(noise)}", *options.set]
        command += [part for change in changes for part in ("--set", change)]
        env = {**os.environ, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        out.with_suffix(".log").write_text(done.stdout + done.stderr)
        last = done.stderr.strip().splitlines()[-1:] or [""]
        print(f"{out.name}: {'done' if done.returncode == 0 else last[0]}", flush=True)
        if done.returncode:
            failures.append(f"{out.name}: {last[0]}")
    return failures


def _noise(text: str) -> str:
    return text if text == "none" else f"{{epsilon: {text}}}"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each budget and noise; mean over seeds, and the range where there are several."""
    cells: dict[tuple[int, float], list[dict[str, Any]]] = {}
    for row in rows:
        epsilon = row["privacy"]["epsilon"]
        cells.setdefault((row["private_macs"], -float("inf") if epsilon is None else -epsilon), []).append(
            row
        )
    lines = [
        "| private MACs | noise | seeds | whole | main alone | **Delta** | random bits | noiseless bits | main-only "
        "| cloud guesses labels |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (macs, order), found in sorted(cells.items()):
        noise = "none" if order == -float("inf") else f"ε = {-order:.0f}"
        figures = [_spread([r["accuracy"][key] for r in found]) for key in KEYS]
        figures[2] = f"**{figures[2]}**"
        leak = _spread([r["leakage"]["cloud_label_accuracy"] for r in found])
        lines.append(f"| {macs / 1e6:.1f} M | {noise} | {len(found)} | {' | '.join(figures)} | {leak} |")
    return "\n".join(lines)


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = f"{statistics.mean(known):.2f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.2f} to {max(known):.2f})"


if __name__ == "__main__":
    main()
