"""The controls that stand next to every accuracy (DESIGN, privacy 8), in this process: no bit leaves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from delta.models.cloud_model import CloudModel
from delta.release.noise import NoiseKey
from delta.training.cloud_stage import CloudStage, fit_fusion, release_records, train_cloud_stage
from delta.training.config import TrainConfig
from delta.training.fit import Progress, logits_of, quiet
from delta.training.private_stage import Labelled, PrivateStage

__all__ = ["Controls", "accuracy", "cloud_logits", "measure_controls", "random_bits"]


@dataclass(frozen=True)
class Controls:
    """Accuracies in percent on the test records.

    Attributes:
        private_only: the whole model, all private.
        main_alone: M_main without any cloud.
        delta: the fusion.
        random_bits: the fusion with the trained cloud model fed independent fair bits; α refitted.
        noiseless_bits: the same recipe trained and run on noiseless bits; α refitted.
        cloud_alone: the cloud model's own guesses: what the cloud knows of each label.
    """

    private_only: float
    main_alone: float
    delta: float
    random_bits: float
    noiseless_bits: float
    cloud_alone: float


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Percent of `[n, classes]` logits whose largest entry is the label."""
    return 100.0 * float((logits.argmax(1) == labels).double().mean())


def random_bits(records: int, payload_bytes: int, *, seed: int) -> Tensor:
    """Independent fair bits in place of releases, `[records, payload_bytes]` uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (records, payload_bytes), generator=generator, dtype=torch.uint8)


def cloud_logits(cloud: CloudModel, bits: Tensor) -> Tensor:
    """z_cloud of stored bits on a local copy of the cloud model: `[n, classes]`."""
    return logits_of(cloud, bits)


def measure_controls(
    stage: PrivateStage,
    cloud_stage: CloudStage,
    test: Labelled,
    config: TrainConfig,
    *,
    key: NoiseKey,
    noiseless: CloudStage | None = None,
    progress: Progress = quiet,
) -> Controls:
    """Measure every control on the test records.

    Args:
        stage: stage 1.
        cloud_stage: stage 2 of the mechanism in question.
        test: test records.
        config: of that mechanism.
        key: noise key of the test releases.
        noiseless: stage 2 with `noise: none` and everything else equal, where it has been run already.
        progress: told while the noiseless control trains.
    """
    z_main_held, z_main = stage.main_logits(stage.held_out.x), stage.main_logits(test.x)
    fitted = partial(fit_fusion, config)

    bits = release_records(cloud_stage.private, cloud_stage.release, test, key=key)
    z_cloud = cloud_logits(cloud_stage.cloud, bits)

    size = cloud_stage.release.payload_bytes
    z_random_held = cloud_logits(
        cloud_stage.cloud, random_bits(len(stage.held_out.y), size, seed=config.seed)
    )
    z_random = cloud_logits(cloud_stage.cloud, random_bits(len(test.y), size, seed=config.seed + 1))
    on_random = fitted(z_main_held, z_random_held, stage.held_out.y)

    clean = cloud_stage
    if config.noise != "none":
        quietened = config.model_copy(update={"noise": "none"})
        clean = noiseless or train_cloud_stage(stage, quietened, progress=progress, label="noiseless control")
    clean_bits = release_records(clean.private, clean.release, test, key=key)
    z_clean = cloud_logits(clean.cloud, clean_bits)

    whole = stage.split.model
    return Controls(
        private_only=accuracy(logits_of(whole, test.x), test.y),
        main_alone=accuracy(z_main, test.y),
        delta=cloud_stage.fusion.accuracy(z_main, z_cloud, test.y),
        random_bits=on_random.accuracy(z_main, z_random, test.y),
        noiseless_bits=clean.fusion.accuracy(z_main, z_clean, test.y),
        cloud_alone=accuracy(z_cloud, test.y),
    )
