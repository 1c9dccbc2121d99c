"""The release configuration of a run, fixed before the first release."""

from __future__ import annotations

from delta.bundle.manifest import Architecture
from delta.errors import ConfigError
from delta.methods.delta.parts import PrivateParts
from delta.models.crop import crop_for
from delta.models.splitting import Parts
from delta.release.components import component_hash, computation_hash
from delta.release.config import (
    BasisConfig,
    Component,
    CropConfig,
    MessageConfig,
    ReleaseConfig,
)
from delta.release.message import MessageMap
from delta.training.config import LearnedMessage, TrainConfig
from delta.training.message_fit import learned_map, message_provenance
from delta.training.private_stage import PrivateStage

__all__ = ["architecture_in_cloud", "architecture_of", "build_release", "check_release", "message_map"]


def architecture_of(parts: Parts) -> Architecture:
    """How the whole model is built.

    Raises:
        ConfigError: that is not known.
    """
    if parts.architecture is None:
        raise ConfigError(
            "the cloud cannot rebuild this model: its class is not importable without arguments; "
            'pass target="package.module:build" to delta.split'
        )
    return parts.architecture


def architecture_in_cloud(config: TrainConfig, parts: Parts) -> Architecture:
    """How the cloud builds its model: the whole one, of which it takes the body, or our bag of patches.

    Raises:
        ConfigError: that is not known, or the message map does not fit.
    """
    if config.layout.patch is None:
        return architecture_of(parts)
    sizes = {"channels": message_map(config, parts).k, "patch": config.layout.patch}
    return Architecture(
        target="delta.models:bag_of_patches",
        arguments={"classes": parts.classes, **sizes, **config.bag.model_dump(mode="json")},
    )


def check_release(config: TrainConfig, parts: Parts) -> None:
    """Refuse what would fail at the very end: a model that nobody can rebuild, a message or a layout that do not fit.

    Raises:
        ConfigError: naming the first.
    """
    architecture_of(parts)
    message, layout = message_map(config, parts), config.layout
    if layout.patch is None:
        return
    block, keep = crop_for(parts.ir_shape, block=config.block, keep=config.keep)
    channels, height, width = parts.ir_shape
    principal = (config.rank_of(channels), height // block * keep, width // block * keep)
    try:
        layout.check(message.shape_of(parts.ir_shape if config.offload == "residual" else principal)[1:])
    except ValueError as error:
        raise ConfigError(str(error)) from None


def message_map(config: TrainConfig, parts: Parts) -> MessageMap:
    """The message map of a run; one that is to be learned has no weights yet.

    Raises:
        ConfigError: k or stride do not fit the offloaded stream.
    """
    if isinstance(config.message, LearnedMessage):
        return learned_map(config, parts)
    residual = config.offload == "residual"
    kind = config.message or ("channel-mean" if residual else "all-channels")
    return MessageMap(
        kind, channels=parts.ir_shape[0] if residual else config.rank_of(parts.ir_shape[0]), k=config.channels
    )


def _trained_map(stage: PrivateStage, config: TrainConfig) -> MessageMap:
    """The map of a run, with its weights."""
    if not isinstance(config.message, LearnedMessage):
        return message_map(config, stage.split)
    found = stage.message
    if found is None or (found.k, found.stride) != (config.message.k, config.message.stride):
        raise ConfigError("stage 1 has not learned this message map; train stage 1 with the same message")
    return found


def build_release(stage: PrivateStage, config: TrainConfig) -> tuple[ReleaseConfig, PrivateParts]:
    """The release configuration of a run, and the private modules that carry it out."""
    stream = stage.split.ir_shape if config.offload == "residual" else stage.decomposer.principal_shape
    message = _trained_map(stage, config)
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
            shape=message.shape_of(stream),
            component=Component(
                hash=component_hash(message.state_dict()),
                provenance=message_provenance(message, config),
            ),
        ),
        bounding=config.bounding,
        sigma=config.sigma(clip_norm=config.bounding.clip_norm),
        layout=config.layout,
        mechanism="delta/one-bit/1" if config.layout.kind == "kept" else "delta/one-bit-shuffled/1",
    )
    return release, PrivateParts(stage.backbone, stage.decomposer, message, stage.main).eval()
