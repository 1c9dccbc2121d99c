"""Stage 2: each record is released once, the cloud model learns from the stored bits and declared labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delta.bundle.manifest import Architecture
from delta.errors import ConfigError
from delta.methods.delta.cloud import build_cloud_model
from delta.methods.delta.fusion import fuse
from delta.methods.delta.parts import PrivateParts
from delta.models.cloud_model import CloudModel
from delta.models.splitting import Parts
from delta.release.components import component_hash, computation_hash
from delta.release.config import (
    BasisConfig,
    Bounding,
    Component,
    CropConfig,
    MessageConfig,
    Provenance,
    ReleaseConfig,
)
from delta.release.ids import RecordIds
from delta.release.message import MessageMap
from delta.release.noise import NoiseKey
from delta.release.releaser import Releaser
from delta.training.cache import WeightCache
from delta.training.config import TrainConfig
from delta.training.fit import Progress, fit, logits_of, placed, quiet
from delta.training.fusion import fit_alpha
from delta.training.private_stage import Labelled, PrivateStage

__all__ = [
    "CloudStage",
    "Fusion",
    "architecture_of",
    "build_release",
    "fit_fusion",
    "message_map",
    "release_records",
    "train_cloud_stage",
]


@dataclass(frozen=True)
class Fusion:
    """A fitted fusion: α, its limit and B."""

    kind: str
    alpha: float
    alpha_max: float
    bound: float

    def accuracy(self, z_main: Tensor, z_cloud: Tensor, labels: Tensor) -> float:
        """Accuracy in percent of the fused logits."""
        fused = fuse(z_main, z_cloud, alpha=self.alpha, bound=self.bound)
        return 100.0 * float((fused.argmax(1) == labels).double().mean())


@dataclass(frozen=True)
class CloudStage:
    """What stage 2 leaves: the release, the cloud model trained on it, and the fusion.

    Attributes:
        private: modules of the private side, message map included.
        release: the release configuration.
        cloud: M_res, trained on releases alone.
        fusion: fitted on the held-out records.
        held_out_bits: their releases, `[n, B]`: fitting α sent them to the cloud.
        releases: how many records were released.
    """

    private: PrivateParts
    release: ReleaseConfig
    cloud: CloudModel
    fusion: Fusion
    held_out_bits: Tensor
    releases: int


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
    bounding = Bounding()
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
        bounding=bounding,
        sigma=config.sigma(clip_norm=bounding.clip_norm),
    )
    return release, PrivateParts(stage.backbone, stage.decomposer, message, stage.main).eval()


def release_records(
    parts: PrivateParts, release: ReleaseConfig, records: Labelled, *, key: NoiseKey, batch: int = 256
) -> Tensor:
    """Release each record once: packed bits `[n, B]`, stored and never drawn again."""
    releaser = Releaser(
        release,
        backbone=parts.backbone,
        decomposer=parts.decomposer,
        message=parts.message,
        key=key,
        memo=None,
    )
    payloads = []
    for start in range(0, len(records.y), batch):
        stop = start + batch
        ids = RecordIds(records=records.ids[start:stop], subjects=records.subjects[start:stop])
        payloads.append(releaser.release(records.x[start:stop], ids).payload)
    return torch.cat(payloads)


def fit_fusion(config: TrainConfig, z_main: Tensor, z_cloud: Tensor, labels: Tensor) -> Fusion:
    """Fit the fusion on held-out logits; `sum` is α = 1 and fits nothing."""
    alpha = 1.0
    if config.fusion == "calibrated":
        alpha = fit_alpha(z_main, z_cloud, labels, alpha_max=config.alpha_max, bound=config.logit_bound)
    return Fusion(config.fusion, alpha, max(config.alpha_max, alpha), config.logit_bound)


def train_cloud_stage(
    stage: PrivateStage,
    config: TrainConfig,
    *,
    key: NoiseKey | None = None,
    progress: Progress = quiet,
    label: str = "cloud model",
    cache: WeightCache | None = None,
) -> CloudStage:
    """Run stage 2 in this process, the cloud model on its own loss.

    Args:
        stage: stage 1.
        config: the release and the fit.
        key: noise key of the training uploads; a fresh one is drawn, and erased once they are stored.
        progress: told after every step.
        label: the name it is told.
        cache: where trained weights are taken from and kept.

    Raises:
        ConfigError: the cloud could not rebuild the model.
    """
    architecture = architecture_of(stage.split)
    release, parts = build_release(stage, config)
    key = key or NoiseKey.generate()
    bits = release_records(parts, release, stage.fit, key=key)
    held_out_bits = release_records(parts, release, stage.held_out, key=key)
    device = torch.device(config.device)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed + 2)
        cloud = build_cloud_model(architecture, release, allowed={architecture.target})
    placed(cloud, device)
    settings = {"config": config.model_dump(mode="json", exclude={"name"}), "release": release.release_hash}
    if cache is None or not cache.restore("cloud", settings, cloud):
        stored, labels = bits.to(device), stage.fit.y.to(device)
        fit(
            cloud,
            lambda index: cloud(stored[index]),
            lambda logits, index: nn.functional.cross_entropy(logits, labels[index], label_smoothing=0.1),
            records=len(labels),
            config=config.cloud_fit,
            generator=torch.Generator().manual_seed(config.seed + 2),
            progress=progress,
            stage=label,
        )
        if cache is not None:
            cache.keep("cloud", settings, cloud)
    cloud.eval()
    z_cloud = logits_of(lambda part: cloud(part.to(device)), held_out_bits)
    fusion = fit_fusion(config, stage.main_logits(stage.held_out.x), z_cloud, stage.held_out.y)
    return CloudStage(
        private=parts,
        release=release,
        cloud=cloud.cpu().eval(),
        fusion=fusion,
        held_out_bits=held_out_bits,
        releases=len(bits) + len(held_out_bits),
    )
