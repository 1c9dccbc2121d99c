"""The one-run audit of a trained cloud model: canaries among its stored releases, one training, guesses by loss.

It is weaker than the audit of the mechanism: training on stored bits is post-processing of the releases, so
that a model can only tell less than the bits that it was trained on. What it can find is a training that saw
more than the releases.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from delta.attacks.audit.one_run import OneRunBound, epsilon_lower_bound, guess_coins
from delta.data.records import Dataset
from delta.device import device_of
from delta.errors import ConfigError
from delta.models.cloud_model import CloudModel
from delta.models.splitting import split
from delta.release.ids import RecordIds
from delta.release.noise import NoiseKey
from delta.release.releaser import Releaser
from delta.training.cloud_trainer import StoredReleases, train_on_releases
from delta.training.config import FitConfig, LabelConfig, MainConfig, NoiseConfig, TrainConfig
from delta.training.private_stage import PrivateStage, input_spec, train_private_stage
from delta.training.release_stage import architecture_of, build_release
from delta.training.spec import DatasetSpec, JobSpec

__all__ = ["TrainedAudit", "audit_trained"]

Progress = Callable[[str, int, int], None]

_GUESSED = 0.5  # the share of canaries guessed at, those with the largest score; fixed beforehand
_VIEWS = 8  # fresh releases of each image over which the auditor averages the loss


@dataclass(frozen=True)
class TrainedAudit:
    """What the audit of one training found.

    Attributes:
        claimed: ε of a release at δ; none without noise, where nothing is claimed.
        bound: the lower bound on ε.
        most: the bound that guesses all of them right would show: no claim above it can be rejected.
        accuracy: of the cloud model on the canaries' releases as trained on, percent: how well it fits them.
        epochs: of the training.
        records: in it, canaries included.
        seed: of everything.
        seconds: that it took.
    """

    claimed: float | None
    bound: OneRunBound
    most: float
    accuracy: float
    epochs: int
    records: int
    seed: int
    seconds: float

    @property
    def rejected(self) -> bool:
        """Whether the claim is falsified."""
        return self.claimed is not None and self.bound.epsilon > self.claimed

    @property
    def verdict(self) -> str:
        """In words that never promise what a test cannot."""
        found = (
            f"{self.bound.correct} of {self.bound.guesses} guesses right certify ε ≥ {self.bound.epsilon:.3g}"
        )
        if self.claimed is None:
            return f"no claim to reject: noise is none; {found}"
        if self.rejected:
            return f"rejected: {found}, above the claimed {self.claimed:.3g} (confidence {self.bound.confidence:g})"
        if self.claimed >= self.most:
            return (
                f"unauditable: {found}; even {self.bound.guesses} right guesses certify ε ≥ {self.most:.3g} at most, "
                f"below the claimed {self.claimed:.3g}. Use more canaries"
            )
        return (
            f"not rejected: {found}, claimed is {self.claimed:.3g}. "
            "That is no proof, and a weaker test than the mechanism's."
        )

    def to_json(self) -> dict[str, Any]:
        """The figures of a report."""
        return {
            "kind": "audit",
            "mechanism": "one training run of a cloud model",
            "claimed": {"epsilon": self.claimed, "delta": self.bound.delta, "mu": None},
            "epsilon_lower_bound": self.bound.epsilon,
            "most_certifiable_epsilon": self.most,
            "one_run": self.bound.to_json(),
            "samples": self.bound.canaries,
            "confidence": self.bound.confidence,
            "rejected": self.rejected,
            "canary_accuracy": self.accuracy,
            "epochs": self.epochs,
            "records": self.records,
            "verdict": self.verdict,
            "seconds": round(self.seconds, 2),
            "seed": self.seed,
            "tee": "simulated",
        }


def audit_trained(
    data: Dataset,
    *,
    epsilon: float | None,
    delta: float = 1e-5,
    canaries: int = 200,
    epochs: int = 30,
    confidence: float = 0.95,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> TrainedAudit:
    """Train a cloud model once on releases with canaries among them, and guess which image each canary had.

    Args:
        data: at least 2·`canaries` records, and as many again to train on beside them.
        epsilon: of a release at `delta`; none for `noise: none`, as a positive control.
        delta: δ.
        canaries: m.
        epochs: of the training.
        confidence: of the bound.
        seed: of coins, labels, noise and weights.
        device: where the cloud model trains.
        progress: told after every step.

    Raises:
        ConfigError: too few records.
    """
    if len(data) < 3 * canaries:
        raise ConfigError(f"{canaries} canaries need {3 * canaries} records, got {len(data)}; ask for fewer")
    told: Progress = progress if progress is not None else (lambda stage, done, total: None)
    started = time.perf_counter()
    stage, config = _private_stage(data, epsilon=epsilon, delta=delta, epochs=epochs, seed=seed)
    release, private = build_release(stage, config)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)
    x = input_spec(data.image_shape).preprocess(data.images[order])
    pairs = x[: 2 * canaries].reshape(canaries, 2, *data.image_shape)
    rest, rest_labels = x[2 * canaries :], data.labels[order][2 * canaries :]
    classes = len(data.class_names)
    # A label that no image bears out has to be learned by heart: the strongest canary there is.
    labels = torch.randint(0, classes, (canaries,), generator=generator)
    coins = torch.randint(0, 2, (canaries,), generator=generator) == 0
    own = torch.where(coins[:, None, None, None], pairs[:, 0], pairs[:, 1])

    def released(records: Tensor, *, key: NoiseKey, name: str) -> Tensor:
        releaser = Releaser(
            release,
            backbone=private.backbone,
            decomposer=private.decomposer,
            message=private.message,
            key=key,
            memo=None,
        )
        parts = [
            releaser.release(
                part, RecordIds([f"{name}-{number}-{place}" for place in range(len(part))])
            ).payload
            for number, part in enumerate(torch.split(records, 256))
        ]
        return torch.cat(parts)

    key = _seeded_key("stored", seed)
    stored = released(torch.cat([own, rest]), key=key, name="stored")
    y = torch.cat([labels, rest_labels])
    model = train_on_releases(
        DatasetSpec(release=release, classes=classes, records=len(y), labels=LabelConfig()),
        JobSpec(
            architecture=architecture_of(stage.split),
            fit=config.cloud_fit,
            augment="none",
            precision=config.precision,
            seed=seed,
        ),
        StoredReleases(stored, y, torch.zeros(len(y), dtype=torch.bool)),
        device=device_of(device),
        progress=told,
    )
    auditor = _seeded_key("auditor", seed)  # its own noise: it never sees the stored releases
    views = 1 if epsilon is None else _VIEWS
    score = torch.zeros(canaries, dtype=torch.float64)
    for view in range(views):
        losses = [
            _losses(model, released(pairs[:, which], key=auditor, name=f"view-{view}-{which}"), labels)
            for which in range(2)
        ]
        score += losses[1] - losses[0]
    guesses, correct = guess_coins(score.numpy(), coins.numpy(), guesses=int(_GUESSED * canaries))
    bound, best = (
        epsilon_lower_bound(
            canaries=canaries,
            guesses=guesses,
            correct=right,
            delta=0.0 if epsilon is None else delta,
            confidence=confidence,
        )
        for right in (correct, guesses)
    )
    with torch.inference_mode():
        fits = float((model(stored[:canaries]).argmax(1) == labels).double().mean())
    return TrainedAudit(
        claimed=epsilon,
        bound=bound,
        most=best.epsilon,
        accuracy=100 * fits,
        epochs=epochs,
        records=len(y),
        seed=seed,
        seconds=time.perf_counter() - started,
    )


def _seeded_key(whose: str, seed: int) -> NoiseKey:
    return NoiseKey(hashlib.sha256(f"delta/audit/{whose}/{seed}".encode()).digest())


@torch.inference_mode()
def _losses(model: CloudModel, payload: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each release `[n, B]`: `[n]` float64."""
    return nn.functional.cross_entropy(model(payload).double(), labels, reduction="none")


def _private_stage(
    data: Dataset, *, epsilon: float | None, delta: float, epochs: int, seed: int
) -> tuple[PrivateStage, TrainConfig]:
    """A data-independent private side: the audit is of the cloud's training alone."""
    channels, height, width = data.image_shape
    config = TrainConfig.of(
        {
            "noise": "none" if epsilon is None else NoiseConfig(epsilon=epsilon, delta=delta),
            "backbone": "fixed",
            "whole": None,
            "rank": 2,
            "main": MainConfig(max_macs=200_000 * max(1, height * width // 256)),
            "main_fit": FitConfig(epochs=1, batch=64),
            "cloud_fit": FitConfig(epochs=epochs, batch=32),
            "seed": seed,
            "name": "audited",
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = split(
            "delta.models:resnet_small",
            at="layer1",
            example=torch.zeros(2, channels, height, width),
            arguments={"classes": len(data.class_names), "in_channels": channels, "width": 8},
        )
    return train_private_stage(parts, data, config), config
