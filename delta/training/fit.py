"""One supervised fit, the same for the whole model, the main model and the cloud model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from delta.training.config import FitConfig

__all__ = ["Progress", "augmented", "distillation_loss", "fit", "logits_of", "placed", "quiet"]

Progress = Callable[[str, int, int], None]
"""Called as `(stage, steps done, steps in all)`."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""`(logits [b, classes], indices of the records [b]) → mean loss`."""


def quiet(stage: str, done: int, total: int) -> None:
    """The progress of a caller who does not watch."""


def distillation_loss(
    logits: Tensor, labels: Tensor, teacher: Tensor, *, temperature: float = 2.0, weight: float = 0.7
) -> Tensor:
    """Cross-entropy with labels, and with a teacher's softened logits (Hinton et al. 2015, arXiv 1503.02531).

    Args:
        logits: `[b, classes]`.
        labels: `[b]`.
        teacher: the teacher's logits, `[b, classes]`; they stay on the private side.
        temperature: of the softening.
        weight: of the teacher's term.
    """
    hard = nn.functional.cross_entropy(logits, labels)
    soft = nn.functional.kl_div(
        nn.functional.log_softmax(logits / temperature, dim=1),
        nn.functional.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - weight) * hard + weight * temperature**2 * soft


def fit(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    loss: Loss,
    *,
    records: int,
    config: FitConfig,
    generator: torch.Generator,
    progress: Progress = quiet,
    stage: str = "fit",
) -> None:
    """Train `model` in place and leave it in eval mode.

    Args:
        model: whose parameters are trained.
        forward: record indices `[b]` → logits `[b, classes]`, through `model`.
        loss: of those logits.
        records: how many there are; a last batch of fewer than 2 is dropped (batch norm).
        config: epochs, batch, schedule.
        generator: order of the records.
        progress: told after every step.
        stage: the name it is told.
    """
    batch = min(config.batch, records)
    starts = [start for start in range(0, records, batch) if records - start >= 2]
    total = config.epochs * len(starts)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, foreach=True
    )
    # From 5 steps on: of 4 the warm-up would end at step 0, and the schedule divide by it.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.learning_rate, total_steps=max(total, 5), pct_start=0.25
    )
    model.train()
    step = 0
    for _ in range(config.epochs):
        order = torch.randperm(records, generator=generator)
        for start in starts:
            index = order[start : start + batch]
            optimizer.zero_grad(set_to_none=True)
            value = loss(forward(index), index)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            step += 1
            progress(stage, step, total)
    model.eval()


M = TypeVar("M", bound=nn.Module)


def placed(module: M, device: torch.device) -> M:
    """A module moved to a device, its convolutions in the layout that is fastest there."""
    moved: M = module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def augmented(x: Tensor, how: str, *, generator: torch.Generator, shift: int = 4) -> Tensor:
    """Shift each image of `[b, c, h, w]` by up to `shift` pixels and, with `flip`, mirror half of them."""
    if how == "none":
        return x
    b, _, h, w = x.shape
    if "flip" in how:
        mirror = torch.rand(b, generator=generator).to(x.device) < 0.5
        x = torch.where(mirror[:, None, None, None], x.flip(3), x)
    padded = nn.functional.pad(x, (shift,) * 4)
    moves = torch.randint(0, 2 * shift + 1, (b, 2), generator=generator).to(x.device)
    rows = moves[:, 0, None] + torch.arange(h, device=x.device)  # [b, h]
    columns = moves[:, 1, None] + torch.arange(w, device=x.device)  # [b, w]
    record = torch.arange(b, device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[record, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def logits_of(forward: Callable[[Tensor], Tensor], x: Tensor, *, batch: int = 256) -> Tensor:
    """`forward` over `x` in batches: `[n, classes]` on the CPU, as a normal tensor."""
    with torch.inference_mode():
        logits = torch.cat([forward(part).float().cpu() for part in torch.split(x, batch)])
    return logits.clone()
