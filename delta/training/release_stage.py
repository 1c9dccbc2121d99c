"""The release configuration of a run, fixed before the first release."""

from __future__ import annotations

from delta.bundle.manifest import Architecture
from delta.errors import ConfigError
from delta.methods.delta.parts import PrivateParts
from delta.models.splitting import Parts
from delta.release.components import component_hash, computation_hash
from delta.release.config import (
    BasisConfig,
    Component,
    CropConfig,
    MessageConfig,
    Provenance,
    ReleaseConfig,
)
from delta.release.message import MessageMap
from delta.training.config import TrainConfig
from delta.training.private_stage import PrivateStage

__all__ = ["architecture_of", "build_release", "message_map"]


def architecture_of(parts: Parts) -> Architecture:
    """How the cloud builds the model.

    Raises:
        ConfigError: that is not known.
    """
    if parts.architecture is None:
        raise ConfigError(
            "the cloud cannot rebuild this model: its class is not importable without arguments; "
            'pass target="package.module:build" to delta.split'
        )
    return parts.architecture


def message_map(config: TrainConfig, parts: Parts) -> MessageMap:
    """The message map of a run.

    Raises:
        ConfigError: k does not fit the offloaded stream's channels.
    """
    residual = config.offload == "residual"
    kind = config.message or ("channel-mean" if residual else "all-channels")
    return MessageMap(
        kind, channels=parts.ir_shape[0] if residual else config.rank_of(parts.ir_shape[0]), k=config.channels
    )


def build_release(stage: PrivateStage, config: TrainConfig) -> tuple[ReleaseConfig, PrivateParts]:
    """The release configuration of a run, and the private modules that carry it out."""
    stream = stage.split.ir_shape if config.offload == "residual" else stage.decomposer.principal_shape
    message = message_map(config, stage.split)
    release = ReleaseConfig(
        input=stage.input,
        ir_shape=stage.split.ir_shape,
        backbone=Component(hash=computation_hash(stage.backbone), provenance=stage.backbone_provenance),
        basis=BasisConfig(
            kind=config.basis,
            rank=stage.decomposer.rank,
            algorithm=config.algorithm,
            component=Component(
                hash=component_hash(stage.decomposer.state_dict()), provenance=stage.basis_provenance
            ),
        ),
        crop=CropConfig(block=stage.decomposer.block, keep=stage.decomposer.keep),
        offload=config.offload,
        message=MessageConfig(
            map=message.kind,
            shape=(message.k, *stream[1:]),
            component=Component(
                hash=component_hash(message.state_dict()),
                provenance=Provenance(kind="data-independent", note=f"a fixed {message.kind} map"),
            ),
        ),
        bounding=config.bounding,
        sigma=config.sigma(clip_norm=config.bounding.clip_norm),
    )
    return release, PrivateParts(stage.backbone, stage.decomposer, message, stage.main).eval()
