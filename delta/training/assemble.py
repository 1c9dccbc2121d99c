"""Both stages together as a bundle."""

from __future__ import annotations

import torch

from delta.bundle.manifest import Manifest, PrivateFacts
from delta.bundle.store import Bundle, weights_hash
from delta.methods.delta.parts import PrivateParts
from delta.models.macs import count_macs, front_macs
from delta.models.private_path import private_peak
from delta.release.config import ReleaseConfig
from delta.training.cloud_stage import CloudStage
from delta.training.config import TrainConfig
from delta.training.private_stage import PrivateStage
from delta.training.release_stage import architecture_in_cloud, architecture_of

__all__ = ["assemble_bundle"]


def assemble_bundle(
    stage: PrivateStage,
    cloud_stage: CloudStage,
    config: TrainConfig,
    *,
    class_names: tuple[str, ...],
    lineage: dict[str, str],
    figures: dict[str, float],
) -> Bundle:
    """Put both stages together, with the counts that every `Cost` carries.

    Args:
        stage: stage 1.
        cloud_stage: stage 2.
        config: of the run.
        class_names: one a class, in label order.
        lineage: how the bundle came about; the cloud reads it.
        figures: accuracies in percent; they stay private.

    Raises:
        ConfigError: the cloud could not rebuild the model.
    """
    private, release = cloud_stage.private, cloud_stage.release
    cloud = dict(cloud_stage.cloud.state_dict())
    manifest = Manifest.sealed(
        name=config.name,
        method="delta",
        input=stage.input,
        class_names=class_names,
        architecture=architecture_of(stage.split),
        cloud_architecture=None
        if release.layout.kind == "kept"
        else architecture_in_cloud(config, stage.split),
        release=release,
        logit_bound=config.logit_bound,
        labels=config.labels.kind,
        label_epsilon=config.labels.epsilon,
        lineage=lineage,
        cloud_weights_hash=weights_hash(cloud),
    )
    facts = PrivateFacts(
        fusion=config.fusion,
        alpha=cloud_stage.fusion.alpha,
        alpha_max=cloud_stage.fusion.alpha_max,
        main=stage.main_settings,
        backbone=config.backbone,
        weights_hash=weights_hash(private.tensors()),
        private_macs=_private_macs(private, release),
        cloud_macs=count_macs(cloud_stage.cloud, cloud_stage.held_out_bits[:1]),
        peak_private_bytes=private_peak(
            torch.zeros(1, *release.input.shape),
            backbone=private.backbone,
            decomposer=private.decomposer,
            message=private.message,
            main=private.main,
            offload=release.offload,
        ),
        figures=figures,
    )
    return Bundle(manifest, facts, private.tensors(), cloud, made_here=True)


def _private_macs(parts: PrivateParts, release: ReleaseConfig) -> int:
    """Backbone, decomposition, message and main model, for one record."""
    front = front_macs(
        parts.backbone,
        parts.decomposer,
        torch.zeros(1, *release.input.shape),
        k=release.message.shape[0],
        offload=release.offload,
        stride=parts.message.stride if parts.message.kind == "learned" else None,
    )
    return front + count_macs(parts.main, torch.zeros(1, *parts.decomposer.main_shape))
