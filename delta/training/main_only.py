"""What Delta must beat: the best small private model of the same private MACs, with no cloud and no release."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delta.errors import ModelError
from delta.models.macs import count_macs, front_macs
from delta.models.main_model import build_main
from delta.training.checkpoint import FitStore
from delta.training.config import TrainConfig
from delta.training.fit import Progress, logits_of, placed, quiet
from delta.training.private_stage import Labelled, PrivateStage
from delta.training.small_fit import fit_small

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
    store: FitStore | None = None,
) -> MainOnly:
    """Train the largest light model on the image, and on the principal part, that Delta's private MACs allow.

    Teacher, epochs and seed are those of the main model (DESIGN, privacy 8).

    Args:
        stage: stage 1; its whole model is the teacher.
        config: of the run.
        test: test records.
        private_macs: backbone, decomposition, release and main model of Delta, per record.
        progress: told after every step.
        store: where finished fits are taken from, and interrupted ones go on.

    Raises:
        ModelError: no light model fits the budget.
    """
    found: list[tuple[float, MainOnly]] = []
    decomposer = stage.decomposer
    principal_macs = front_macs(
        stage.backbone, decomposer, stage.fit.x[:1], k=decomposer.rank, offload="principal"
    )
    fronts: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
        "image": (lambda x: x, 0),
        "principal": (lambda x: decomposer.main_input(decomposer(stage.backbone(x))), principal_macs),
    }
    device = torch.device(config.device)
    x, y = stage.fit.x.to(device), stage.fit.y.to(device)
    teacher = stage.split.to(device).model.eval() if config.main.distil else None
    modules = (stage.backbone.to(device), decomposer.to(device))
    for reads, (front, spent) in fronts.items():
        with torch.no_grad():
            view = front(x[:2])
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            try:
                model = build_main(
                    layout="light",
                    in_channels=view.shape[1],
                    size=tuple(view.shape[2:]),
                    classes=stage.split.classes,
                    max_macs=private_macs - spent,
                )
            except ModelError:
                continue
        settings = {**config.private_settings, "budget": private_macs, "reads": reads}
        fit_small(
            placed(model, device),
            front,
            x=x,
            y=y,
            teacher=teacher,
            config=config,
            progress=progress,
            stage=f"main-only, reads {reads}",
            checkpoints=store.of("main-only", settings) if store else None,
        )

        def path(x: Tensor, front: Callable[[Tensor], Tensor] = front, model: nn.Module = model) -> Tensor:
            logits: Tensor = model(front(x))
            return logits

        held_out = (
            (logits_of(path, stage.held_out.x.to(device)).argmax(1) == stage.held_out.y).double().mean()
        )
        right = logits_of(path, test.x.to(device)).argmax(1) == test.y
        macs = spent + count_macs(model, view[:1])
        found.append((float(held_out), MainOnly(100 * float(right.double().mean()), macs, reads, right)))
    stage.split.to("cpu")
    for module in modules:
        module.cpu()
    if not found:
        raise ModelError(f"no light model fits {private_macs:,} MACs; give the main model a larger budget")
    return max(found, key=lambda pair: pair[0])[1]
