"""A run's figures as JSON and as the lines of a table. Every one was measured in that run (I8)."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from delta.data.records import DataSplits
from delta.release.config import ReleaseConfig
from delta.training.run import Run
from delta.training.run_config import RunConfig

__all__ = ["run_figures", "run_rows"]


def run_figures(config: RunConfig, run: Run, data: DataSplits, *, seconds: float) -> dict[str, Any]:
    """The figures that `delta train --json` writes.

    Args:
        config: of the run.
        run: its outcome.
        data: training and test records.
        seconds: of the whole command.
    """
    controls, stage, facts = run.controls, run.stage, run.bundle.facts
    return {
        "kind": "train",
        "name": config.name,
        "dataset": data.name,
        "records": {"training": run.records, "test": len(data.test)},
        "seed": config.seed,
        "mode": config.mode,
        "tee": "simulated",
        "accuracy": {
            "private_only": controls.private_only,
            "main_alone": controls.main_alone,
            "delta": controls.delta,
            "random_bits": controls.random_bits,
            "noiseless_bits": controls.noiseless_bits,
            "main_only": run.main_only.accuracy,
        },
        "cloud_helps": run.cloud_helps,
        "beats_main_only": run.beats_main_only,
        "verdict": run.verdict,
        "alpha": facts.alpha,
        "bad_answers": stage.bad_answers,
        "leakage": {"cloud_label_accuracy": controls.cloud_alone, "label_prior": run.prior},
        "bytes_per_record": run.bytes_per_record,
        "resumed": stage.resumed,
        "releases": {"total": stage.releases, "held_out": len(stage.held_out_bits)},
        "ledger": {"new_entries": stage.debited},
        "message": message_figures(stage.release),
        "labels": config.labels.model_dump(mode="json"),
        "privacy": {
            **run.claim.to_json(),
            "label": run.claim.label,
            "conditions": list(run.claim.conditions),
            "person": run.claim.person_level,
        },
        "budget": config.subject_budget,
        "layout": run.bundle.manifest.release.layout.text if run.bundle.manifest.release else "kept",
        "private_macs": facts.private_macs,
        "main_only_macs": run.main_only.macs,
        "main_only_reads": run.main_only.reads,
        "cloud_macs": facts.cloud_macs,
        "stage_seconds": dict(run.seconds),
        "from_checkpoints": dict(run.from_checkpoints),
        "seconds": seconds,
        "release_hash": run.bundle.manifest.release_hash,
        "cloud_hash": run.bundle.manifest.cloud_hash,
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": config.device,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }


def message_figures(release: ReleaseConfig) -> dict[str, Any]:
    """The message map of a release, and where it comes from."""
    message = release.message
    return {
        "map": message.map,
        "shape": list(message.shape),
        "stride": release.message_stride,
        "provenance": message.component.provenance.model_dump(mode="json", exclude_none=True),
    }


def message_text(release: ReleaseConfig) -> str:
    """The same in a few words: `learned 4×16×16, stride 2; private`."""
    message, stride = release.message, release.message_stride
    size = "×".join(map(str, message.shape)) + (f", stride {stride}" if stride > 1 else "")
    return f"{message.map} {size}; {message.component.provenance.kind}"


def run_rows(config: RunConfig, run: Run) -> list[list[str]]:
    """The lines of the printed table: what, and its figure."""
    controls, stage, facts = run.controls, run.stage, run.bundle.facts
    size, times = run.bytes_per_record, run.seconds
    ceiling = run.claim.ceiling_bits
    taken = [f"{name} ({seconds:.0f} s)" for name, seconds in run.from_checkpoints.items()]
    share = "this start, the rest was sent before" if stage.resumed else "the training"
    claim = "none: empirical obfuscation"
    if run.claim.epsilon is not None:
        claim = f"ε = {run.claim.epsilon:.2f} at δ = {run.claim.delta:g} a release"
    labels = config.labels.kind + (
        "" if config.labels.epsilon is None else f", ε = {config.labels.epsilon:g}"
    )
    return [
        ["whole model, all private", f"{controls.private_only:.1f} %"],
        ["main model alone", f"{controls.main_alone:.1f} %"],
        ["Delta", f"{controls.delta:.1f} %"],
        ["  control: random bits", f"{controls.random_bits:.1f} %"],
        ["  control: noiseless bits", f"{controls.noiseless_bits:.1f} %"],
        [
            f"best main-only, {run.main_only.macs / 1e6:.2f} M MACs, reads {run.main_only.reads}",
            f"{run.main_only.accuracy:.1f} %",
        ],
        [
            "private / cloud MACs a record",
            f"{facts.private_macs / 1e6:.2f} M / {facts.cloud_macs / 1e6:.1f} M",
        ],
        ["α", f"{facts.alpha:.2f}"],
        *([["layout", stage.release.layout.text]] if stage.release.layout.kind == "shuffled" else []),
        ["claim", claim],
        ["ceiling a release", "none" if ceiling is None else f"{ceiling:.2f} bits"],
        ["message", message_text(stage.release)],
        ["labels", labels],
        ["leak: the cloud guesses the label", f"{controls.cloud_alone:.1f} % (prior {run.prior:.1f} %)"],
        ["releases / entries new to the ledger", f"{stage.releases:,} / {stage.debited:,}"],
        [f"bytes a record over {share}, up / down", f"{size['up']:.1f} / {size['down']:.1f}"],
        ["seconds: " + ", ".join(times), ", ".join(f"{value:.0f}" for value in times.values())],
        *([["  without the fits taken from checkpoints", ", ".join(taken)]] if taken else []),
    ]
