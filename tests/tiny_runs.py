"""Runs of `delta train` as small as they get, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from delta.bundle.store import load_bundle
from delta.privacy.ledger_file import read_ledger

RECORDS = 200
"""Training records: 180 to train on, in three steps an epoch, and 20 held out."""
DATA = f"generated:4x1x16x16:{RECORDS}"


def settings(**changes: Any) -> dict[str, Any]:
    """What a configuration file holds."""
    base = {
        "noise": "none",
        "name": "tiny",
        "data": DATA,
        "model": {"target": "resnet_small", "split_at": "layer1", "arguments": {"width": 4}},
        "rank": 2,
        "backbone": "fixed",
        "whole": {"epochs": 1},
        "main": {"layout": "light", "max_macs": 60000},
        "main_fit": {"epochs": 1},
        "cloud_fit": {"epochs": 1},
    }
    return {**base, **changes}


def write_config(path: Path, **changes: Any) -> Path:
    """A configuration file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings(**changes)))
    return path


def outcome_of(out: Path) -> dict[str, Any]:
    """What a run's choices come to: equal for equal runs."""
    bundle = load_bundle(out / "bundle")
    return {
        "cloud": bundle.manifest.cloud_hash,
        "release": bundle.manifest.release_hash,
        "private": bundle.facts.weights_hash,
        "alpha": bundle.facts.alpha,
    }


def stored_releases(out: Path) -> dict[str, bytes]:
    """The released bytes that a run holds, by file."""
    return {path.name: path.read_bytes() for path in (out / "releases").glob("releases-*.safetensors")}


def entered(out: Path) -> list[tuple[str, str]]:
    """Subject and release of each entry of a run's ledger."""
    path = out / "ledger.jsonl"
    return (
        [(debit.subject, debit.release_id) for debit in read_ledger(path).entries()] if path.exists() else []
    )


def figures_of(path: Path) -> dict[str, Any]:
    """What `--json` wrote."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found
