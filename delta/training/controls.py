"""The controls that stand next to every accuracy (DESIGN, privacy 8), in this process: no bit leaves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from delta.errors import CloudAnswerError
from delta.methods.delta.fusion import fuse
from delta.models.cloud_model import CloudModel
from delta.privacy.ledger import UNLIMITED
from delta.release.noise import NoiseKey
from delta.training.checkpoint import FitStore
from delta.training.cloud_stage import CloudStage, Stage2, fit_fusion, train_cloud_stage
from delta.training.config import TrainConfig
from delta.training.fit import Progress, logits_of, quiet
from delta.training.private_stage import Labelled, PrivateStage
from delta.training.uploads import release_records

__all__ = ["Controls", "Measured", "accuracy", "beats", "cloud_logits", "measure_controls", "random_bits"]


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


def beats(gain: int, loss: int) -> bool:
    """McNemar's test at 5 %, two-sided: of the records that one of two models gets right, `gain` and `loss`."""
    return gain + loss > 0 and (gain - loss) / (gain + loss) ** 0.5 > 1.96


def random_bits(records: int, payload_bytes: int, *, seed: int) -> Tensor:
    """Independent fair bits in place of releases, `[records, payload_bytes]` uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (records, payload_bytes), generator=generator, dtype=torch.uint8)


def cloud_logits(cloud: CloudModel, bits: Tensor, *, device: torch.device | None = None) -> Tensor:
    """z_cloud of stored bits on a local copy of the cloud model: `[n, classes]`; the model comes back to the CPU.

    Raises:
        CloudAnswerError: its weights, which came from the cloud, give logits that are not finite (I4).
    """
    where = device or torch.device("cpu")
    model = cloud.to(where)
    try:
        logits = logits_of(lambda part: model(part.to(where)), bits)
    finally:
        model.cpu()
    if not bool(torch.isfinite(logits).all()):  # finite weights are no promise: a variance may be negative
        raise CloudAnswerError("the cloud's weights give logits that are not finite")
    return logits


@dataclass(frozen=True)
class Measured:
    """Controls, and which test records each way got right: what a test of significance needs.

    Attributes:
        controls: accuracies in percent.
        delta_right: of the fusion, `[n]` bool.
        main_right: of M_main alone, `[n]` bool.
    """

    controls: Controls
    delta_right: Tensor
    main_right: Tensor


def measure_controls(
    stage: PrivateStage,
    cloud_stage: CloudStage,
    test: Labelled,
    config: TrainConfig,
    *,
    key: NoiseKey,
    noiseless: CloudStage | None = None,
    store: FitStore | None = None,
    progress: Progress = quiet,
) -> Measured:
    """Measure every control on the test records.

    Args:
        stage: stage 1.
        cloud_stage: stage 2 of the mechanism in question.
        test: test records.
        config: of that mechanism.
        key: noise key of the test releases.
        noiseless: stage 2 with `noise: none` and everything else equal, where it has been run already.
        store: checkpoints of the noiseless control, which trains in this process; none for nowhere.
        progress: told while the noiseless control trains.
    """
    z_main_held, z_main = cloud_stage.main_logits(stage.held_out.x), cloud_stage.main_logits(test.x)
    fitted = partial(fit_fusion, config)
    device = torch.device(config.device)
    answer = partial(cloud_logits, device=device)

    bits = release_records(cloud_stage.private, cloud_stage.release, test, key=key)
    z_cloud = answer(cloud_stage.cloud, bits)

    size = cloud_stage.release.payload_bytes
    z_random_held = answer(cloud_stage.cloud, random_bits(len(stage.held_out.y), size, seed=config.seed))
    z_random = answer(cloud_stage.cloud, random_bits(len(test.y), size, seed=config.seed + 1))
    on_random = fitted(z_main_held, z_random_held, stage.held_out.y)

    clean = cloud_stage
    if config.noise != "none":
        quietened = config.model_copy(update={"noise": "none", "budget": UNLIMITED})
        clean = noiseless or train_cloud_stage(
            stage,
            quietened,
            where=Stage2(store=store),
            key=NoiseKey(bytes(32)),  # nothing leaves; it fixes the order, so that runs can share this fit
            progress=progress,
            label="noiseless control",
        )
    clean_bits = release_records(clean.private, clean.release, test, key=key)
    z_clean = answer(clean.cloud, clean_bits)

    whole = stage.split.to(device).model.eval()
    z_whole = logits_of(lambda part: whole(part.to(device)), test.x)
    stage.split.to("cpu")
    bound = cloud_stage.fusion.bound
    fused = fuse(z_main, z_cloud, alpha=cloud_stage.fusion.alpha, bound=bound)
    controls = Controls(
        private_only=accuracy(z_whole, test.y),
        main_alone=accuracy(z_main, test.y),
        delta=accuracy(fused, test.y),
        random_bits=on_random.accuracy(z_main, z_random, test.y),
        noiseless_bits=clean.fusion.accuracy(clean.main_logits(test.x), z_clean, test.y),
        cloud_alone=accuracy(z_cloud, test.y),
    )
    return Measured(controls, fused.argmax(1) == test.y, z_main.argmax(1) == test.y)
