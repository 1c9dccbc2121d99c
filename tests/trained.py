"""One small Delta for the whole test run: real digits at 16×16, trained in seconds through `delta.training`.

Four releases stand on one trained whole model: `none` (no noise), `noise` (ε = 8), `principal` (the other
stream) and `svd` (a basis a record, on a fixed stem, so that its main model reads all channels).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from delta.bundle.store import Bundle
from delta.data.embedded import load_embedded
from delta.data.records import Dataset, DataSplits
from delta.methods.whole import WholeModel
from delta.models.splitting import Parts, split
from delta.release.noise import NoiseKey
from delta.training.api import lineage_of
from delta.training.assemble import assemble_bundle
from delta.training.cloud_stage import CloudStage, train_cloud_stage
from delta.training.config import FitConfig, MainConfig, NoiseConfig, TrainConfig
from delta.training.private_stage import Labelled, PrivateStage, train_private_stage

SIZE = 16
CLASSES = 10


def small_parts(*, seed: int = 0, width: int = 8) -> Parts:
    """A seeded, untrained `resnet_small` for 1×16×16 records, cut behind its stem."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return split(
            "delta.models:resnet_small",
            at="layer1",
            example=torch.zeros(2, 1, SIZE, SIZE),
            arguments={"classes": CLASSES, "in_channels": 1, "width": width},
        )


def settings(**changes: Any) -> dict[str, Any]:
    """Keyword settings of a run that takes about a second."""
    small: dict[str, Any] = {
        "noise": "none",
        "rank": 2,
        "whole": FitConfig(epochs=2, batch=16),
        "main": MainConfig(max_macs=60_000),
        "main_fit": FitConfig(epochs=2, batch=16, learning_rate=1e-2),
        "cloud_fit": FitConfig(epochs=3, batch=16),
        "name": "tiny",
    }
    return {**small, **changes}


def reduced(data: Dataset, count: int) -> Dataset:
    """`count` digits at half the size."""
    chosen = data.limited(count, seed=0)
    return Dataset.of(
        name=data.name,
        pixels=nn.functional.avg_pool2d(chosen.images, 2),
        labels=chosen.labels,
        class_names=chosen.class_names,
    )


def small_digits(*, train: int = 600, test: int = 100) -> DataSplits:
    """Embedded digits at 16×16."""
    splits = load_embedded()
    return DataSplits(reduced(splits.train, train), reduced(splits.test, test))


@dataclass(frozen=True)
class Trained:
    """What the session's training left.

    Attributes:
        data: the digits.
        private: stage 1 of all but `svd`.
        stages: stage 2 by name.
        bundles: by name.
        test: preprocessed test records.
    """

    data: DataSplits
    private: PrivateStage
    stages: dict[str, CloudStage]
    bundles: dict[str, Bundle]
    test: Labelled

    @property
    def x(self) -> Tensor:
        """Test records `[100, 1, 16, 16]`."""
        return self.test.x

    @property
    def whole(self) -> WholeModel:
        """The trained whole model, with records to calibrate on."""
        return WholeModel.of(
            self.private.split.model,
            input=self.private.input,
            class_names=self.data.train.class_names,
            name="tiny",
            calibration=self.private.fit.x[:64],
        )


def train_all(data: DataSplits) -> Trained:
    """Train every variant; a few seconds on two cores."""
    parts = small_parts()
    base = TrainConfig.of(settings())
    private = train_private_stage(parts, data.train, base)
    stages: dict[str, CloudStage] = {}
    bundles: dict[str, Bundle] = {}

    def add(name: str, stage: PrivateStage, config: TrainConfig) -> None:
        stages[name] = train_cloud_stage(stage, config, key=NoiseKey(bytes(32)))
        bundles[name] = assemble_bundle(
            stage,
            stages[name],
            config,
            class_names=data.train.class_names,
            lineage=lineage_of(config, data.train),
            figures={},
        )

    quick = {"cloud_fit": FitConfig(epochs=1)}
    add("none", private, base)
    noise = {"noise": NoiseConfig(epsilon=8.0), "name": "tiny-noise", **quick}
    add("noise", private, base.model_copy(update=noise))
    add(
        "principal",
        private,
        base.model_copy(update={"offload": "principal", "name": "tiny-principal", **quick}),
    )
    svd = base.model_copy(
        update={
            "basis": "svd",
            "backbone": "fixed",
            "whole": None,
            "name": "tiny-svd",
            "main": MainConfig(max_macs=200_000),
            "main_fit": FitConfig(epochs=1),
            **quick,
        }
    )
    add("svd", train_private_stage(parts, data.train, svd), svd)
    return Trained(data, private, stages, bundles, Labelled.of(data.test, private.input))
