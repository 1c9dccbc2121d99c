"""Released bytes on disk: a run that was cut, or is started again, sends the same ones."""

from __future__ import annotations

from pathlib import Path

import torch

from delta.config import canonical_hash
from delta.methods.delta.parts import PrivateParts
from delta.release.config import ReleaseConfig
from delta.release.ids import record_digest
from delta.release.noise import NoiseKey
from delta.training.config import TrainConfig
from delta.training.private_stage import PrivateStage
from delta.training.uploads import Uploads, make_uploads

__all__ = ["kept_uploads"]


def kept_uploads(
    stage: PrivateStage,
    config: TrainConfig,
    release: ReleaseConfig,
    parts: PrivateParts,
    *,
    folder: Path | None,
    key: NoiseKey | None,
    label_key: NoiseKey | None = None,
) -> Uploads:
    """The releases that are stored in a folder, or new ones; a key of their own goes once they are stored.

    Args:
        stage: stage 1.
        config: how they are made.
        release: the release configuration.
        parts: the frozen private modules.
        folder: where they are stored; none for nowhere.
        key: noise key; none draws one, which is kept until the bytes are stored and then erased.
        label_key: of label responses, kept by the owner; none for the noise key.

    Raises:
        CheckpointError: the stored file is damaged.
    """
    path = key_path = None
    if folder is not None:
        what = {
            "release": release.release_hash,
            "labels": config.labels.model_dump(mode="json"),
            "views": [config.views, config.augment if config.views > 1 else "none", config.seed],
            "records": [
                [list(r.ids), list(r.subjects), record_digest(r.x).hex()] for r in (stage.fit, stage.held_out)
            ],
            "told": record_digest(stage.fit.y).hex(),  # a corrected label is another upload
        }
        name = canonical_hash(what)[:16]
        path = folder / f"releases-{name}.safetensors"
        key_path = folder / f"releases-{name}.key"
        _erase_leftovers(folder, but=key_path)
        stored = Uploads.load(path)
        if stored is not None:
            key_path.unlink(missing_ok=True)
            return stored
        if key is None:
            key_path.parent.mkdir(parents=True, exist_ok=True)
            key = NoiseKey.at(key_path)
    uploads = make_uploads(
        parts,
        release,
        fit=stage.fit,
        held_out=stage.held_out,
        classes=stage.split.classes,
        labels=config.labels,
        key=key or NoiseKey.generate(),
        label_key=label_key,
        views=config.views,
        augment=config.augment,
        seed=config.seed,
        device=torch.device(config.device),
    )
    if path is not None and key_path is not None:
        uploads.save(path)
        key_path.unlink(missing_ok=True)
    return uploads


def _erase_leftovers(folder: Path, *, but: Path) -> None:
    """Erase keys whose bytes were never stored, and so never sent, and what a kill left of writing one."""
    for path in (*folder.glob("releases-*.key"), *folder.glob(".releases-*.key-*")):
        if path != but:
            path.unlink(missing_ok=True)
