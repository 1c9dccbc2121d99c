#!/usr/bin/env python3
"""Measure the audit itself: false alarms over honest runs, and power over runs with each seeded fault.

    python scripts/measure_audit.py --out docs/results/audit.json --processes 2
    python scripts/measure_audit.py --table docs/results/audit.json

Two kinds of runs, and every figure says which: `end-to-end` goes from image to packet through the private half;
`simulated` draws the bits from the law of the captured mechanism (delta/attacks/audit/power.py) and runs the same
statistics on them, so that hundreds of runs at n = 100,000 are affordable.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

EPSILON, DELTA, CONFIDENCE = 1.0, 1e-5, 0.95


def main() -> None:
    """Measure unless only a table is asked for, then print it."""
    options = _parser().parse_args()
    if options.table is None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(measure(options), indent=1, ensure_ascii=False) + "\n")
        options.table = options.out
    print(table(json.loads(options.table.read_text())))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--runs", type=int, default=200, help="honest end-to-end runs")
    add("--samples", type=int, default=10_000, help="of each image in them")
    add("--simulated", type=int, default=1000, help="simulated runs of each row at n = 100,000")
    add("--processes", type=int, default=1)
    add("--out", type=Path, default=Path("docs/results/audit.json"))
    add("--table", type=Path, help="print the table of a file of results, and run nothing")
    return parser


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    import torch

    from delta.attacks.audit.faults import FAULTS, norm_fault
    from delta.attacks.audit.power import Rate
    from delta.privacy.gaussian import mu_of

    started = time.perf_counter()
    names = [None, *FAULTS, "paper-code", "paper-code-gaussian"]
    with ProcessPoolExecutor(options.processes) as pool:
        single = list(pool.map(partial(end_to_end, samples=100_000, seed=0), names))
        seeds = range(1, options.runs + 1)
        honest = list(pool.map(_honest, [options.samples] * len(seeds), seeds))
        rows = [("none", None), *((name, fault) for name, fault in FAULTS.items() if name != "fixed-seed")]
        rows += [(f"norm-x{factor:g}", norm_fault(factor)) for factor in (1.1, 1.2, 1.35, 1.5)]
        cells = [(name, samples) for name, _ in rows for samples in (10_000, 100_000)]
        power = list(pool.map(partial(simulated, runs=options.simulated), cells))
    alarms = Rate(sum(run["rejected"] for run in honest), len(honest))
    either = Rate(sum(run["rejected"] or run["deviates"] for run in honest), len(honest))
    return {
        "kind": "audit-power",
        "claimed": {"epsilon": EPSILON, "delta": DELTA, "mu": mu_of(epsilon=EPSILON, delta=DELTA)},
        "confidence": CONFIDENCE,
        "end_to_end": single,
        "false_alarms_end_to_end": {
            "samples": options.samples,
            "seeds": [seeds.start, seeds.stop - 1],
            "rejected": alarms.to_json(),
            "rejected_or_deviates": either.to_json(),
            "mean_mu_lower_bound": sum(run["mu_lower_bound"] for run in honest) / len(honest),
        },
        "simulated": power,
        "seconds": round(time.perf_counter() - started, 1),
        "environment": {
            "machine": platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "tee": "simulated",
    }


def end_to_end(name: str | None, *, samples: int, seed: int) -> dict[str, Any]:
    """One audit from image to packet."""
    import torch

    from delta.attacks.audit.audit import audit_bundle
    from delta.attacks.audit.authors import paper_code
    from delta.attacks.audit.faults import FAULTS
    from delta.attacks.audit.network import audited_bundle

    torch.set_num_threads(1)
    other = None
    if name is not None and name.startswith("paper-code"):
        noise = "gaussian" if name.endswith("gaussian") else "laplace"
        other = paper_code(epsilon=EPSILON, delta=DELTA, noise=noise, seed=seed)  # type: ignore[arg-type]
    found = audit_bundle(
        audited_bundle(epsilon=EPSILON, delta=DELTA),
        samples=samples,
        confidence=CONFIDENCE,
        delta=DELTA,
        fault=FAULTS.get(name or ""),
        other=other,
        searched=False,
        seed=seed,
    )
    return found.to_json()


def _honest(samples: int, seed: int) -> dict[str, Any]:
    return end_to_end(None, samples=samples, seed=seed)


def simulated(cell: tuple[str, int], *, runs: int) -> dict[str, Any]:
    """Rejections over simulated runs of one fault at one number of samples."""
    from delta.attacks.audit.faults import FAULTS, norm_fault
    from delta.attacks.audit.power import rejection_rate
    from delta.privacy.gaussian import mu_of

    name, samples = cell
    fault = norm_fault(float(name.removeprefix("norm-x"))) if name.startswith("norm-x") else FAULTS.get(name)
    rate, mean = rejection_rate(
        mu=mu_of(epsilon=EPSILON, delta=DELTA),
        fault=fault,
        samples=samples,
        confidence=CONFIDENCE,
        seeds=range(runs),
    )
    return {"fault": name, "samples": samples, **rate.to_json(), "mean_mu_lower_bound": mean}


def table(figures: dict[str, Any]) -> str:
    """Markdown."""
    alarms = figures["false_alarms_end_to_end"]
    claimed = figures["claimed"]
    lines = [
        f"Claim: μ = {claimed['mu']:.3f} (ε = {claimed['epsilon']:g} at δ = {claimed['delta']:g}), "
        f"confidence {figures['confidence']:g}.",
        "",
        "| audited, end to end | samples | claimed μ | certified μ | verdict | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for run in figures["end_to_end"]:
        name = run["fault"] or (run["mechanism"] if run["mechanism"] != "delta" else "as it ships")
        by = "" if run["mu_lower_bound"] > run["claimed"]["mu"] else " (shared noise)"
        verdict = f"rejected{by}" if run["rejected"] else "not rejected"
        lines.append(
            f"| {name} | {run['samples']:,} | {run['claimed']['mu']:.3f} | {run['mu_lower_bound']:.3f} "
            f"| {verdict} | {run['seconds']:.0f} |"
        )
    lines += ["", "| false alarms | runs | samples | rate | upper limit (95 %) |", "|---|---|---|---|---|"]
    for key, text in (
        ("rejected", "claim rejected"),
        ("rejected_or_deviates", "rejected, or a check failed"),
    ):
        rate = alarms[key]
        lines.append(
            f"| {text}, end to end | {rate['runs']} | {alarms['samples']:,} | {100 * rate['rate']:.1f} % "
            f"| {100 * rate['upper_95']:.1f} % |"
        )
    for row in figures["simulated"]:
        if row["fault"] == "none":
            lines.append(
                f"| claim rejected, simulated | {row['runs']} | {row['samples']:,} | {100 * row['rate']:.1f} % "
                f"| {100 * row['upper_95']:.1f} % |"
            )
    lines += [
        "",
        "| power, simulated | n = 10,000 | n = 100,000 (lower limit) | mean certified μ at 100,000 |",
        "|---|---|---|---|",
    ]
    cells = {(row["fault"], row["samples"]): row for row in figures["simulated"] if row["fault"] != "none"}
    for name in dict.fromkeys(fault for fault, _ in cells):
        few, many = cells[name, 10_000], cells[name, 100_000]
        lines.append(
            f"| {name} | {100 * few['rate']:.1f} % | {100 * many['rate']:.1f} % ({100 * many['lower_95']:.1f} %) "
            f"| {many['mean_mu_lower_bound']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
