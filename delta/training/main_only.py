"""What Delta must beat: the best small private model of the same private MACs, with no cloud and no release."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delta.errors import ModelError
from delta.models.macs import count_macs, decomposition_macs
from delta.models.main_model import build_main
from delta.training.cache import WeightCache
from delta.training.config import TrainConfig
from delta.training.fit import Progress, distillation_loss, fit, logits_of, quiet
from delta.training.private_stage import Labelled, PrivateStage

__all__ = ["MainOnly", "train_main_only"]


@dataclass(frozen=True)
class MainOnly:
    """The better of two candidates on the held-out records, measured on the test records.

    Attributes:
        accuracy: percent of the test records.
        macs: of all that it runs, per record.
        reads: `image`, or `principal`: the image straight away, or the principal part, as Delta's main model.
        right: of each test record, whether it was right, `[n]`.
    """

    accuracy: float
    macs: int
    reads: str
    right: Tensor


def train_main_only(
    stage: PrivateStage,
    config: TrainConfig,
    test: Labelled,
    *,
    private_macs: int,
    progress: Progress = quiet,
    cache: WeightCache | None = None,
) -> MainOnly:
    """Train the largest light model on the image, and on the principal part, that Delta's private MACs allow.

    Teacher, epochs and seed are those of the main model (DESIGN, privacy 8).

    Args:
        stage: stage 1; its whole model is the teacher.
        config: of the run.
        test: test records.
        private_macs: backbone, decomposition, release and main model of Delta, per record.
        progress: told after every step.
        cache: where trained weights are taken from and kept.

    Raises:
        ModelError: no light model fits the budget.
    """
    found: list[tuple[float, MainOnly]] = []
    decomposer = stage.decomposer
    principal_macs = count_macs(stage.backbone, stage.fit.x[:1]) + decomposition_macs(
        ir_shape=decomposer.ir_shape,
        rank=decomposer.rank,
        block=decomposer.block,
        keep=decomposer.keep,
        basis=decomposer.kind,
        k=decomposer.rank,
        offload="principal",
    )
    fronts: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
        "image": (lambda x: x, 0),
        "principal": (lambda x: decomposer.main_input(decomposer(stage.backbone(x))), principal_macs),
    }
    with torch.inference_mode():
        teacher = logits_of(stage.split.model, stage.fit.x).clone()
    for reads, (front, spent) in fronts.items():
        with torch.no_grad():
            views = torch.cat([front(part) for part in torch.split(stage.fit.x, 256)])
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            try:
                model = build_main(
                    layout="light",
                    in_channels=views.shape[1],
                    size=tuple(views.shape[2:]),
                    classes=stage.split.classes,
                    max_macs=private_macs - spent,
                )
            except ModelError:
                continue
        settings = {**config.private_settings, "budget": private_macs, "reads": reads}
        if cache is None or not cache.restore("main-only", settings, model):
            _fit(
                model,
                views,
                stage.fit.y,
                teacher,
                config,
                progress=progress,
                stage=f"main-only, reads {reads}",
            )
            if cache is not None:
                cache.keep("main-only", settings, model)
        model.eval()

        def path(x: Tensor, front: Callable[[Tensor], Tensor] = front, model: nn.Module = model) -> Tensor:
            logits: Tensor = model(front(x))
            return logits

        held_out = (logits_of(path, stage.held_out.x).argmax(1) == stage.held_out.y).double().mean()
        right = logits_of(path, test.x).argmax(1) == test.y
        macs = spent + count_macs(model, views[:1])
        found.append((float(held_out), MainOnly(100 * float(right.double().mean()), macs, reads, right)))
    if not found:
        raise ModelError(f"no light model fits {private_macs:,} MACs; give the main model a larger budget")
    return max(found, key=lambda pair: pair[0])[1]


def _fit(
    model: nn.Module,
    views: Tensor,
    labels: Tensor,
    teacher: Tensor,
    config: TrainConfig,
    *,
    progress: Progress,
    stage: str,
) -> None:
    fit(
        model,
        lambda index: model(views[index]),
        lambda logits, index: distillation_loss(logits, labels[index], teacher[index]),
        records=len(labels),
        config=config.main_fit,
        generator=torch.Generator().manual_seed(config.seed + 1),
        progress=progress,
        stage=stage,
    )
