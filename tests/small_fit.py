"""A fit that depends on everything a checkpoint must hold: batch norm, dropout, augmentation, odd layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from delta.bundle.store import weights_hash
from delta.training.checkpoint import CheckpointStore
from delta.training.config import FitConfig
from delta.training.fit import augmented, fit, placed, quiet

RECORDS, BATCH = 28, 8
STEPS = 4  # an epoch, the last of 4 records


def small_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.AvgPool2d(3),
            nn.Flatten(),
            nn.Linear(16, 3),
        )


def small_fit(
    checkpoints: CheckpointStore | None,
    *,
    epochs: int,
    progress: Callable[[str, int, int], None] = quiet,
    **options: Any,
) -> str:
    """Train, or go on; returns the SHA-256 of the final weights."""
    cpu = torch.device("cpu")
    drawn = torch.Generator().manual_seed(3)
    x = torch.randn(RECORDS, 2, 6, 6, generator=drawn)
    y = torch.randint(0, 3, (RECORDS,), generator=drawn)
    model = placed(small_net(), cpu)
    generator = torch.Generator().manual_seed(0)
    fit(
        model,
        lambda net, index: net(augmented(x[index], "shift+flip", generator=generator, shift=1)),
        lambda logits, index: nn.functional.cross_entropy(logits, y[index]),
        records=RECORDS,
        config=FitConfig(epochs=epochs, batch=BATCH),
        generator=generator,
        progress=progress,
        checkpoints=checkpoints,
        **options,
    )
    return weights_hash(model.state_dict())
