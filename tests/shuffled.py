"""A shuffled twin of the session's trained bundles: the same private half, another layout and cloud model."""

from __future__ import annotations

from typing import Any

from delta.bundle.store import Bundle
from delta.release.config import LayoutConfig
from delta.release.noise import NoiseKey
from delta.training.assemble import assemble_bundle
from delta.training.cloud_stage import CloudStage, train_cloud_stage
from delta.training.config import BagConfig, FitConfig, TrainConfig
from tests.trained import Trained, settings

BAG = BagConfig(width=4, layers=1)


def shuffled_config(*, patch: int = 4, mirror: bool = True, **changes: Any) -> TrainConfig:
    """Settings of a run with patches."""
    layout = LayoutConfig(kind="shuffled", patch=patch, mirror=mirror)
    quick = {
        "layout": layout,
        "bag": BAG,
        "cloud_fit": FitConfig(epochs=1, batch=16),
        "name": "tiny-shuffled",
    }
    return TrainConfig.of(settings(**{**quick, **changes}))


def shuffled(trained: Trained, **changes: Any) -> tuple[Bundle, CloudStage]:
    """Stage 2 on the session's stage 1, and the bundle; half a second."""
    config = shuffled_config(**changes)
    stage = train_cloud_stage(trained.private, config, key=NoiseKey(bytes(32)))
    bundle = assemble_bundle(
        trained.private, stage, config, class_names=trained.data.train.class_names, lineage={}, figures={}
    )
    return bundle, stage
