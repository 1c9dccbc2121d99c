"""Leakage of one point: the attack suite, and of its figures those that a frontier is drawn in."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

from delta.bundle.store import Bundle
from delta.config import canonical_hash
from delta.data.records import DataSplits
from delta.errors import ConfigError
from delta.frontier.cell import RESULT_VERSION, Cell, CellFolder
from delta.frontier.grid import AttackPlan
from delta.frontier.membership import membership_auc
from delta.training.fit import Progress

__all__ = ["attack_bundle", "check_attack", "leakage_of", "settings_for"]

_SENT, _NOTHING = "release", "random-bits"


def attack_bundle(
    bundle: Bundle, data: DataSplits, cell: Cell, folder: CellFolder, progress: Progress
) -> dict[str, Any]:
    """Run the suite on what a bundle releases; figures as `leakage_of` has them, and `membership_auc`.

    The decoder of random bits, a floor, is the same for all releases of one shape: it is trained once a sweep.

    Args:
        bundle: of the cell.
        data: its records.
        cell: whose attack it is.
        folder: where the floor is kept.
        progress: told after every step.

    Raises:
        ConfigError: the data hold too few records, or a package is not installed.
    """
    from delta.attacks.settings import AttackSettings
    from delta.attacks.suite import run_attacks

    chosen = settings_for(cell.attack, data, seed=cell.run.seed, device=cell.run.device)
    release = bundle.manifest.release
    nothing = canonical_hash(
        [*cell.context.values(), chosen, None if release is None else release.message.shape, RESULT_VERSION]
    )
    floor = folder.floor(nothing)
    if release is not None and release.layout.kind == "shuffled":  # the strongest attack counts
        chosen["attacks"] = (*chosen["attacks"], "jigsaw")
    settings = AttackSettings.parse(
        {**chosen, "taps": (_SENT,) if floor is not None else (_SENT, _NOTHING)},
        what=f"attack on {cell.label}",
    )
    found = leakage_of(run_attacks(bundle, data, settings, progress=progress).to_json())
    if floor is None:
        folder.keep_floor(nothing, {"ssim": found["ssim_floor"]})
    else:
        found["ssim_floor"] = floor["ssim"]
    return {**found, "membership_auc": membership_auc(bundle, data, cell, progress)}


def check_attack(plan: AttackPlan, data: DataSplits) -> None:
    """Refuse attacks that would fail after hours of training.

    Raises:
        ConfigError: there are fewer records than are to be attacked with or at, or torchmetrics is not installed.
    """
    for name, asked, there, what in (
        ("victims", plan.victims, len(data.test), "test"),
        ("auxiliary", plan.auxiliary, len(data.train), "training"),
    ):
        if asked is not None and asked > there:
            raise ConfigError(
                f"attack.{name} is {asked:,}, and the data hold {there:,} {what} records; ask for that many at most"
            )
    if importlib.util.find_spec("torchmetrics") is None:
        raise ConfigError("the attacks need the package 'torchmetrics'; install delta-split[attacks]")


def settings_for(plan: AttackPlan, data: DataSplits, *, seed: int, device: str) -> dict[str, Any]:
    """Settings of the suite. A stored release answers every repeated query, so that one look is all there is."""
    # Of fewer records than candidates all are candidates; reports say how many there were.
    candidates = min(plan.candidates, len(data.train) + len(data.test))
    return {
        "attacks": ("matching", "labels", "decoder"),
        "observations": (1,),
        "candidates": (candidates,),
        "epochs": plan.epochs,
        "width": plan.width,
        "classifier_epochs": plan.classifier_epochs,
        "auxiliary": plan.auxiliary,
        "victims": plan.victims,
        "seed": seed,
        "device": device,
    }


def leakage_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a frontier takes from the suite's figures.

    Returns:
        `ssim` under the strongest attack on the release, and the best that any attack draws without one,
        `ssim_floor`; `matching_top1` of `matching_candidates`, `label_leak` and `label_prior` in percent. None
        where an attack was not run.
    """
    drawings = list(report.get("taps") or ())
    matched = _of_tap(report.get("matching") or (), _SENT)
    labels = report.get("labels") or {}
    # The suite's own choice: a search takes fewer victims, and its mean is no match for that of all of them.
    sent = _ssims(_of_tap(report.get("strongest") or drawings, _SENT))
    floors = _ssims([*(report.get("floors") or {}).values(), *_of_tap(drawings, _NOTHING)])
    decoder = next((row["decoder"] for row in _of_tap(drawings, _SENT) if row.get("decoder")), None)
    return {
        "ssim": max(sent, default=None),
        "ssim_floor": max(floors, default=None),
        "matching_top1": matched[0]["top1"] if matched else None,
        "matching_candidates": matched[0]["candidates"] if matched else None,
        "label_leak": labels.get("cloud_accuracy"),
        "label_prior": labels.get("prior"),
        "decoder": decoder,
    }


def _of_tap(rows: Iterable[Mapping[str, Any]], tap: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get("tap", tap) == tap]


def _ssims(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    return [row["ssim"] for row in rows if row.get("ssim") is not None]
