"""Shadow models: the bundle's recipe on random halves of a pool, through the very code that trained the bundle."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from delta.attacks.membership.scores import Ask
from delta.bundle.store import Bundle
from delta.data.records import hash_seed
from delta.errors import BundleError
from delta.models.main_model import build_main
from delta.training.cloud_trainer import StoredReleases, train_on_releases
from delta.training.config import LabelConfig, TrainConfig
from delta.training.fit import Progress, placed, quiet
from delta.training.small_fit import fit_small
from delta.training.spec import DatasetSpec, JobSpec

__all__ = ["label_config", "train_cloud_shadows", "train_main_shadows"]

_BATCH = 256


def label_config(bundle: Bundle) -> LabelConfig:
    """How the bundle's cloud was told labels."""
    epsilon = bundle.manifest.label_epsilon
    return LabelConfig(kind="disclosed" if epsilon is None else "randomized-response", epsilon=epsilon)


def train_cloud_shadows(
    bundle: Bundle,
    bits: Tensor,
    labels: Tensor,
    masks: Tensor,
    *,
    config: TrainConfig,
    seed: int,
    device: torch.device,
    allowed: Collection[str] = (),
    progress: Progress = quiet,
) -> list[nn.Module]:
    """Cloud models, one a row of the masks, all on the same stored releases: training is post-processing of them.

    Args:
        bundle: whose cloud model they resemble.
        bits: stored releases of the pool, `[n, B]` uint8.
        labels: as disclosed, `[n]`.
        masks: whom each model is trained on, `[models, n]` bool.
        config: the fit, the augmentation and the precision of the cloud's training.
        seed: of weights and orders; each model has its own.
        device: where to compute.
        allowed: import targets that the bundle may name.
        progress: told after every step.

    Returns:
        Models in eval mode on the device.

    Raises:
        BundleError: the bundle has no release.
    """
    release = bundle.manifest.release
    if release is None:
        raise BundleError(
            f"shadow cloud models need a bundle of method 'delta', not {bundle.manifest.method!r}"
        )
    spec = DatasetSpec(
        release=release,
        classes=len(bundle.manifest.class_names),
        records=len(labels),
        labels=label_config(bundle),
    )
    models: list[nn.Module] = []
    for number, mask in enumerate(masks):
        job = JobSpec(
            architecture=bundle.manifest.architecture_in_cloud,
            fit=config.cloud_fit,
            augment=config.cloud_augment,
            precision=config.precision,
            seed=hash_seed(seed, number),
        )
        model = train_on_releases(
            spec,
            job,
            StoredReleases(bits, labels, ~mask),
            device=device,
            allowed=allowed,
            progress=progress,
            stage=f"cloud model {number + 1} of {len(masks)}",
        )
        models.append(placed(model, device).requires_grad_(False))
    return models


def train_main_shadows(
    bundle: Bundle,
    x: Tensor,
    labels: Tensor,
    masks: Tensor,
    ask: Ask,
    *,
    config: TrainConfig,
    seed: int,
    progress: Progress = quiet,
) -> list[nn.Module]:
    """Main models, one a row of the masks, behind the bundle's frozen backbone and basis, on labels alone.

    Args:
        bundle: whose main model they resemble.
        x: preprocessed records of the pool, `[n, c, h, w]`, on the device where everything runs.
        labels: `[n]`.
        masks: whom each model is trained on, `[models, n]` bool.
        ask: records → what a main model reads, one draw.
        config: the fit, the augmentation and the precision of the main model's training.
        seed: of weights and orders; each model has its own.
        progress: told after every step.

    Returns:
        Models in eval mode on the device.
    """
    still = config.augment == "none"  # then what a main model reads of a record never changes
    inputs = torch.cat([ask(part)[0] for part in torch.split(x, _BATCH)]) if still else x
    models: list[nn.Module] = []
    for number, mask in enumerate(masks):
        own = hash_seed(seed, number)
        with torch.random.fork_rng():
            torch.manual_seed(own)
            model = placed(build_main(**bundle.facts.main), x.device)
        members = mask.nonzero().flatten().to(x.device)
        fit_small(
            model,
            (lambda read: read) if still else (lambda images: ask(images)[0]),
            x=inputs[members],
            y=labels.to(x.device)[members],
            teacher=None,
            config=config.model_copy(update={"seed": own >> 1}),
            progress=progress,
            stage=f"main model {number + 1} of {len(masks)}",
            checkpoints=None,
        )
        models.append(model.requires_grad_(False))
    return models
