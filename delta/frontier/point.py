"""Measuring one point: training with every control, the bytes of a query, and the attacks."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from delta.bundle.store import Bundle, save_bundle
from delta.data.records import DataSplits
from delta.errors import BundleError
from delta.frontier.cell import Cell, CellFolder
from delta.methods.delta.private import DeltaMethod
from delta.models.macs import count_macs
from delta.models.splitting import Parts
from delta.release.ids import RecordIds
from delta.release.noise import NoiseKey
from delta.training.checkpoint import Warn, log_warning
from delta.training.cloud_stage import Stage2
from delta.training.config import LearnedMessage
from delta.training.fit import Progress, quiet
from delta.training.folder_lock import InUseError
from delta.training.private_stage import Labelled
from delta.training.run import Run, run_training
from delta.training.run_config import RunConfig
from delta.transport.inprocess import InProcessTransport

__all__ = ["Attack", "Inputs", "measure_cell", "settings_of", "sweep_key"]

Inputs = Callable[[RunConfig], tuple[DataSplits, Parts]]
"""The data and the model, split and as it is before any training, that a configuration names."""

Attack = Callable[[Bundle, DataSplits, Cell, CellFolder, Progress], Mapping[str, Any]]
"""Attacks a bundle; gives figures of leakage by name, as `delta.frontier.leakage` has them."""

_BATCH, _RECORDS, _DEADLINE_S = 250, 1000, 600.0
_PATIENCE_S, _POLL_S = 4 * 3600.0, 1.0


def measure_cell(
    cell: Cell,
    folder: CellFolder,
    inputs: Inputs,
    *,
    attack: Attack,
    progress: Progress = quiet,
    warn: Warn = log_warning,
) -> dict[str, Any]:
    """Train, measure and attack one cell, and store its figures. Nothing leaves this process.

    A fit that another worker is at is waited for, and then taken from its checkpoint.

    Args:
        cell: what to measure.
        folder: where its figures and its bundle go, and where checkpoints are.
        inputs: data and model.
        attack: the attacks.
        progress: told after every step.
        warn: told of damaged checkpoints.

    Raises:
        ConfigError: a setting is wrong, or model and data do not fit together.
        ModelError: no main model fits the budget.
        CheckpointError: checkpoints cannot be used, or another worker was at a fit for hours.
        InputError: the figures cannot be written.
    """
    started = time.perf_counter()
    store = folder.fits(warn=warn)
    key = sweep_key(cell.run)
    while True:
        data, parts = inputs(cell.run)
        try:
            run = run_training(
                parts, data, cell.run.training, where=Stage2(store=store), key=key, progress=progress
            )
            break
        except InUseError:
            if time.perf_counter() - started > _PATIENCE_S:
                raise
            time.sleep(_POLL_S)
    trained = time.perf_counter()
    save_bundle(run.bundle, folder.bundle)
    figures = {
        "settings": settings_of(cell.run, run.bundle),
        **_training_figures(run),
        "private_only_macs": count_macs(parts.model, torch.zeros(1, *parts.input_shape)),
        **_query_bytes(run.bundle, data, device=cell.run.device),
        **attack(run.bundle, data, cell, folder, progress),
        "records": {"training": len(data.train), "test": len(data.test)},
        "seconds": {"training": trained - started, "attacks": time.perf_counter() - trained},
        "release_hash": run.bundle.manifest.release_hash,
    }
    folder.keep_figures(figures)
    return figures


def sweep_key(run: RunConfig) -> NoiseKey:
    """The noise key of a sweep, which can be repeated: no release leaves, and so nothing rests on its secrecy.

    Without noise it fixes the order of the uploads alone, as in the noiseless control, which is then this very fit.
    """
    if run.noise == "none":
        return NoiseKey(bytes(32))
    return NoiseKey(hashlib.sha256(f"delta/frontier/v1 {run.seed}".encode()).digest())


def settings_of(run: RunConfig, bundle: Bundle) -> dict[str, Any]:
    """What a reader tells points apart by, as it came out: defaults are spelled out.

    `private_macs` is the budget where there is one, else what the private path came to.

    Raises:
        BundleError: the bundle has no release configuration.
    """
    release = bundle.manifest.release
    if release is None:
        raise BundleError("a point of a frontier is a bundle of method 'delta'")
    return {
        "private_macs": run.main.private_macs or bundle.facts.private_macs,
        "rank": release.basis.rank,
        "block": release.crop.block,
        "keep": release.crop.keep,
        "message": release.message.map,
        "k": release.message.shape[0],
        "stride": release.message_stride,
        "adversary": run.message.adversary if isinstance(run.message, LearnedMessage) else None,
        "noise": run.noise if run.noise == "none" else run.noise.epsilon,
        "offload": release.offload,
        "fusion": run.fusion,
        "basis": release.basis.kind,
        "backbone": run.backbone,
        "layout": release.layout.text,
    }


def _training_figures(run: Run) -> dict[str, Any]:
    controls, rival, facts = run.controls, run.main_only, run.bundle.facts
    return {
        "accuracy": {
            "delta": controls.delta,
            "main_alone": controls.main_alone,
            "main_only": rival.accuracy,
            "random_bits": controls.random_bits,
            "noiseless_bits": controls.noiseless_bits,
            "private_only": controls.private_only,
        },
        "cloud_helps": run.cloud_helps,
        "beats_main_only": run.beats_main_only,
        "alpha": facts.alpha,
        "epsilon": run.claim.epsilon,
        "delta": run.claim.delta,
        "mu": run.claim.mu,
        "claim": run.claim.claim,
        "private_macs": facts.private_macs,
        "cloud_macs": facts.cloud_macs,
        "main_only_macs": rival.macs,
        "main_only_reads": rival.reads,
    }


def _query_bytes(bundle: Bundle, data: DataSplits, *, device: str) -> dict[str, Any]:
    """What queries of the test records weigh on the wire, the session's handshake once; bytes a record."""
    target = {bundle.manifest.architecture.target}
    method = DeltaMethod.from_bundle(bundle, key=NoiseKey(bytes(32)), allow=target)
    half = DeltaMethod.cloud_half(bundle.cloud_part, device=torch.device(device), allowed=frozenset(target))
    count = min(_RECORDS, len(data.test))
    test = Labelled.of(data.test.subset(range(count)), bundle.manifest.input)
    up = down = 0
    with InProcessTransport(half, binding=bundle.manifest.binding) as transport:
        method.prepare(transport, deadline_s=_DEADLINE_S)
        for start in range(0, count, _BATCH):
            part = slice(start, start + _BATCH)
            cost = method.infer(test.x[part], RecordIds(records=test.ids[part])).cost
            up, down = up + cost.bytes_up, down + cost.bytes_down
        handshake = transport.handshake_bytes
    return {"bytes_up": (up + handshake[0]) / count, "bytes_down": (down + handshake[1]) / count}
