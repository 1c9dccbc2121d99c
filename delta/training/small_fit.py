"""Training a small private model, with or without a teacher: M_main and its rivals get the same recipe."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from delta.training.checkpoint import CheckpointStore
from delta.training.config import TrainConfig
from delta.training.fit import Progress, augmented, distillation_loss, fit, logits_of

__all__ = ["fit_small"]

_BATCH = 256


def fit_small(
    model: nn.Module,
    front: Callable[[Tensor], Tensor],
    *,
    x: Tensor,
    y: Tensor,
    teacher: nn.Module | None,
    config: TrainConfig,
    progress: Progress,
    stage: str,
    checkpoints: CheckpointStore | None,
) -> None:
    """Train a model on what a frozen front makes of the images, and leave it in eval mode.

    What nothing augments is computed once: the front and the teacher are frozen.

    Args:
        model: to train, on the device of `x`.
        front: images `[b, channels, height, width]` → the model's input.
        x: preprocessed records.
        y: labels `[n]`.
        teacher: whose logits the model is to meet as well; none for labels alone.
        config: `main_fit`, `augment`, `precision`, `orthogonality` and the seed.
        progress: told after every step.
        stage: the name it is told.
        checkpoints: where to resume from and to keep the state.
    """
    generator = torch.Generator().manual_seed(config.seed + 1)
    latest: list[Tensor] = []  # the teacher's logits on the images that `forward` has just drawn

    @torch.no_grad()
    def view_of(images: Tensor) -> Tensor:
        return front(images)

    @cache  # on the first step: a fit that is finished already takes none
    def all_views() -> Tensor:
        return torch.cat([view_of(part) for part in torch.split(x, _BATCH)])

    @cache
    def all_references() -> Tensor:
        return logits_of(teacher, x).to(x.device) if teacher is not None else torch.empty(0)

    def forward(net: nn.Module, index: Tensor) -> Tensor:
        if config.augment == "none":
            return net(all_views()[index])  # type: ignore[no-any-return]
        images = augmented(x[index], config.augment, generator=generator)
        if teacher is not None:
            with torch.no_grad():
                latest[:] = [teacher(images).float()]
        return net(view_of(images))  # type: ignore[no-any-return]

    def loss(logits: Tensor, index: Tensor) -> Tensor:
        if teacher is None:
            return nn.functional.cross_entropy(logits, y[index])
        reference = all_references()[index] if config.augment == "none" else latest[0]
        return distillation_loss(logits, y[index], reference)

    fit(
        model,
        forward,
        loss,
        records=len(y),
        config=config.main_fit,
        generator=generator,
        progress=progress,
        stage=stage,
        checkpoints=checkpoints,
        precision=config.precision,
        orthogonality=config.orthogonality,
    )
