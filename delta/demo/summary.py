"""The demonstration's figures as JSON and as the lines of a table. Every one was measured in this run (I8)."""

from __future__ import annotations

import platform
from typing import Any

import torch

from delta.demo.experiment import DemoResult, Row
from delta.demo.gallery import examples_of

__all__ = ["headline", "row_title", "summarise", "verdict"]

_TITLES = {"residual": "noise: none", "principal": "--offload principal, noise: none"}


def row_title(row: Row) -> str:
    """What a row is, in a few words."""
    if row.config.noise != "none":
        return f"ε = {row.config.noise.epsilon:g} a release"
    return _TITLES[row.config.offload]


def summarise(result: DemoResult, *, source: str | None = None, examples: int = 0) -> dict[str, Any]:
    """`summary.json`: the main row's figures, the other rows under `rows`.

    Args:
        result: of the demonstration.
        source: of its records, as the command was told.
        examples: records of each row as pictures: private ones, which only a user may ask for (I6).
    """
    rows = {name: _figures(row, result) for name, row in result.rows.items()}
    if examples:
        for name, row in result.rows.items():
            rows[name]["examples"] = examples_of(result, row, examples)
    return {
        "kind": "demo",
        "source": source,
        "seed": result.rows["main"].config.seed,
        "dataset": result.data.train.name,
        "records": len(result.test.y),
        "training_records": len(result.data.train.labels),
        "tee": "simulated",
        **rows.pop("main"),
        "rows": rows,
        "verdict": verdict(result),
        "private_macs": result.private_macs,
        "main_only_macs": result.main_only.macs,
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": {"private": result.threads, "training": torch.get_num_threads()},
            "records_per_request": result.batch,
        },
    }


def verdict(result: DemoResult) -> str:
    """In plain words: was the cloud worth it?"""
    row, rival = result.rows["main"], result.main_only
    alone, delta = row.controls.main_alone, row.delta_accuracy
    leak = (
        f"From the same bits the cloud guesses {row.leakage.cloud_label_accuracy:.0f} % of the labels "
        f"(prior {row.leakage.prior:.0f} %) and matches {row.leakage.match.top1:.0f} % of the images among "
        f"{row.leakage.match.candidates:,} candidates."
    )
    if not row.cloud_helps:
        return (
            f"The cloud is not worth it here: Delta {delta:.1f} %, its main model alone {alone:.1f} %; "
            f"the difference is within chance. {leak}"
        )
    if not row.beats_main_only(rival):
        return (
            f"The cloud is not worth it here: it lifts Delta's main model from {alone:.1f} to {delta:.1f} %, but a "
            f"model that spends the same {result.private_macs / 1e6:.2f} M private MACs on itself reaches "
            f"{rival.accuracy:.1f} % without any cloud. {leak}"
        )
    return (
        f"The cloud lifts Delta's main model from {alone:.1f} to {delta:.1f} %; the best main-only model of the same "
        f"{result.private_macs / 1e6:.2f} M private MACs reaches {rival.accuracy:.1f} %. {leak}"
    )


def headline(result: DemoResult) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the printed table: one column a row of the experiment."""
    rows = list(result.rows.values())
    columns = ["", *(row_title(row) for row in rows)]

    def line(name: str, *values: str) -> list[str]:
        return [name, *values]

    return columns, [
        line("whole model, all private", *(f"{r.controls.private_only:.1f} %" for r in rows)),
        line("main model alone", *(f"{r.controls.main_alone:.1f} %" for r in rows)),
        line("Delta", *(f"{r.delta_accuracy:.1f} %" for r in rows)),
        line("  control: random bits", *(f"{r.controls.random_bits:.1f} %" for r in rows)),
        line("  control: noiseless bits", *(f"{r.controls.noiseless_bits:.1f} %" for r in rows)),
        line("best main-only, same private MACs", *(f"{result.main_only.accuracy:.1f} %" for _ in rows)),
        line("α", *(f"{r.stage.fusion.alpha:.2f}" for r in rows)),
        line("private / cloud / wall ms a record", *(_times(r) for r in rows)),
        line("bytes a record, up / down", *(f"{r.bytes_up:.1f} / {r.bytes_down:.1f}" for r in rows)),
        line("claim", *(_claim(r) for r in rows)),
        line("  unit of privacy", *("none" if r.claim.epsilon is None else r.claim.unit for r in rows)),
        line("  ceiling a release", *(_ceiling(r) for r in rows)),
        line("leak: the cloud guesses the label", *(_guess(r) for r in rows)),
        line("leak: matched among candidates", *(_match(r) for r in rows)),
        line(
            "leak: decoder SSIM (floor)",
            *(f"{r.leakage.ssim:.2f} ({r.leakage.ssim_floor:.2f})" for r in rows),
        ),
    ]


def _times(row: Row) -> str:
    return f"{row.private_ms:.2f} / {row.cloud_ms:.2f} / {row.wall_ms:.2f}"


def _claim(row: Row) -> str:
    if row.claim.epsilon is None:
        return "none: empirical obfuscation"
    return f"ε = {row.claim.epsilon:.2f} at δ = {row.claim.delta:g}"


def _ceiling(row: Row) -> str:
    return "none" if row.claim.ceiling_bits is None else f"{row.claim.ceiling_bits:.2f} bits"


def _guess(row: Row) -> str:
    return f"{row.leakage.cloud_label_accuracy:.1f} % (prior {row.leakage.prior:.0f} %)"


def _match(row: Row) -> str:
    return f"{row.leakage.match.top1:.1f} % of {row.leakage.match.candidates:,}"


def _figures(row: Row, result: DemoResult) -> dict[str, Any]:
    controls = row.controls
    return {
        "title": row_title(row),
        "label": row.claim.label,
        "offload": row.config.offload,
        "accuracy": {
            "private_only": controls.private_only,
            "main_alone": controls.main_alone,
            "delta": row.delta_accuracy,
            "random_bits": controls.random_bits,
            "noiseless_bits": controls.noiseless_bits,
            "main_only": result.main_only.accuracy,
        },
        "cloud_helps": row.cloud_helps,
        "beats_main_only": row.beats_main_only(result.main_only),
        "alpha": row.stage.fusion.alpha,
        "certified_fraction": row.certified,
        "fallbacks": row.fallbacks,
        "bytes_per_record": {"up": row.bytes_up, "down": row.bytes_down},
        "ms_per_record": {"private": row.private_ms, "cloud": row.cloud_ms, "wall": row.wall_ms},
        "privacy": {
            **row.claim.to_json(),
            "conditions": list(row.claim.conditions),
            "person": row.claim.person_level,
        },
        "leakage": {
            "cloud_label_accuracy": row.leakage.cloud_label_accuracy,
            "label_prior": row.leakage.prior,
            "match_top1": row.leakage.match.top1,
            "match_candidates": row.leakage.match.candidates,
            "match_median_rank": row.leakage.match.median_rank,
            "ssim": row.leakage.ssim,
            "ssim_floor": row.leakage.ssim_floor,
        },
        "releases": {"training": row.stage.releases, "test": len(row.payloads)},
    }
