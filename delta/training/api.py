"""`delta.train`: a model and a data set in, a bundle out."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from delta.bundle.store import Bundle
from delta.data.records import Dataset, DataSplits
from delta.errors import ConfigError
from delta.models.splitting import Parts
from delta.privacy.ledger import InMemoryLedger
from delta.release.noise import NoiseKey
from delta.training.affordable import check_budget
from delta.training.assemble import assemble_bundle
from delta.training.cloud_stage import Stage2, train_cloud_stage
from delta.training.config import TrainConfig
from delta.training.controls import measure_controls
from delta.training.fit import Progress, quiet
from delta.training.private_stage import Labelled, train_private_stage
from delta.training.release_stage import check_release

__all__ = ["lineage_of", "train"]


def train(
    parts: Parts,
    data: DataSplits,
    *,
    config: Path | str | None = None,
    progress: Progress = quiet,
    **settings: Any,  # noqa: ANN401
) -> Bundle:
    """Train Delta in this process: stage 1 on the private side, stage 2 on releases alone.

    Args:
        parts: a split model from `delta.split`; it is trained in place unless `whole=None` is given.
        data: training and test records.
        config: a YAML file of settings, such as `configs/digits.yaml`; instead of `settings`.
        progress: called as `(stage, steps done, steps in all)`.
        **settings: fields of `delta.training.config.TrainConfig`; `noise` must be given.

    Returns:
        The bundle; `bundle.facts.figures` holds the accuracy of every control on the test records, percent.

    Raises:
        ConfigError: a setting is wrong, or model and data do not fit together.
        BudgetExceededError: the budget is too small for the data set.
    """
    if config is not None and settings:
        raise ConfigError(f"settings come from {config} or from keywords, not from both; give one of them")
    chosen = TrainConfig.of(settings) if config is None else TrainConfig.read_yaml(Path(config))
    check_release(chosen, parts)
    check_budget(chosen, data.train)
    stage = train_private_stage(parts, data.train, chosen, progress=progress)
    where = Stage2(ledger=InMemoryLedger(budget=chosen.subject_budget))
    cloud = train_cloud_stage(stage, chosen, where=where, progress=progress)
    test = Labelled.of(data.test, stage.input)
    measured = measure_controls(stage, cloud, test, chosen, key=NoiseKey.generate(), progress=progress)
    return assemble_bundle(
        stage,
        cloud,
        chosen,
        class_names=tuple(data.train.class_names),
        lineage=lineage_of(chosen, data.train),
        figures=vars(measured.controls),
    )


def lineage_of(config: TrainConfig, data: Dataset) -> dict[str, str]:
    """How a bundle came about; read by the cloud, so it holds names and counts only."""
    return {
        "seed": str(config.seed),
        "data": data.name,
        "noise": "none" if config.noise == "none" else f"epsilon={config.noise.epsilon:g}",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
