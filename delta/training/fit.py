"""One supervised fit, the same for the whole model, the main model and the cloud model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from delta.errors import ConfigError
from delta.training.batches import batch_starts
from delta.training.checkpoint import CheckpointStore
from delta.training.config import FitConfig, Precision
from delta.training.descent import Descent
from delta.training.fit_state import FitState
from delta.training.orthogonality import soft_orthogonality, trainable_convolutions
from delta.training.repeatable import repeatable
from delta.training.watch import LossWatch, Report
from delta.training.world import ALONE, World

__all__ = [
    "Forward",
    "Progress",
    "Report",
    "augmented",
    "distillation_loss",
    "fit",
    "logits_of",
    "placed",
    "quiet",
]

Progress = Callable[[str, int, int], None]
"""Called as `(stage, steps done, steps in all)`."""

Forward = Callable[[nn.Module, Tensor], Tensor]
"""`(module to call, indices of the records [b]) → logits [b, classes]`."""

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
    forward: Forward,
    loss: Loss,
    *,
    records: int,
    config: FitConfig,
    generator: torch.Generator,
    progress: Progress = quiet,
    stage: str = "fit",
    checkpoints: CheckpointStore | None = None,
    precision: Precision = "float32",
    world: World = ALONE,
    orthogonality: float = 0.0,
    report: Report | None = None,
) -> None:
    """Train `model` in place and leave it in eval mode.

    With `checkpoints`, a fit that was cut goes on from the last one, to bit-identical weights on the same device
    with as many threads (and, of several processes, no more than two: the order in which more gradients are
    summed is not fixed); a finished one loads its weights, draws nothing from `generator`, and tells nobody.
    What the model draws from torch's global random numbers, as dropout does, is a function of the generator's
    seed, and the caller's numbers stay as they were.

    In a world of several processes every rank makes the same call with a generator in the same state, and takes
    an equal part of each batch, whose last records are dropped where they do not share out evenly. All end with
    the same weights.

    Args:
        model: whose parameters are trained.
        forward: a module to call, and record indices `[b]` → logits `[b, classes]`, through that module: `model`
            itself, or what stands for it while several processes train.
        loss: of those logits.
        records: how many there are; a last batch of fewer than 2 (for each process) is dropped (batch norm).
        config: epochs, batch of all processes together, schedule.
        generator: order of the records, and of what else `forward` draws.
        progress: told after every step.
        stage: the name it is told.
        checkpoints: where to resume from and to keep the state.
        precision: of forward and loss.
        world: the processes that train together.
        orthogonality: λ of the convolutions' soft orthogonality; 0 is none.
        report: told the running mean of the loss, at most about twice a second, and at the end.

    Raises:
        ConfigError: the loss is not finite, or a batch is too small for so many processes.
        CheckpointError: the checkpoints are another training's, in use by another run, or cannot be written.
    """
    batch = min(config.batch, records)
    if world.size > 1 and batch < 2 * world.size:
        raise ConfigError(
            f"{stage}: a batch of {batch} for {world.size} processes: each needs 2 records; start fewer"
        )
    starts = batch_starts(records, config, processes=world.size)
    total = config.epochs * len(starts)
    device = next(model.parameters()).device
    descent = Descent(model, config, steps=total, precision=precision, device=device)
    state = FitState(model, descent, generator, steps=total, plan={"records": records})
    keeping = checkpoints if world.leads else None
    watch = LossWatch(stage, total, device=device, report=report if world.leads else None)
    convolutions = trainable_convolutions(model) if orthogonality else []
    with nullcontext() if keeping is None else keeping.resumed() as stored:
        if checkpoints is not None and keeping is None:
            stored = checkpoints.latest()
        if stored is not None:
            state.restore(stored)
        if checkpoints is not None and state.finished:
            model.eval()
            return
        model.train()
        with repeatable(device), world.shared(model, device) as net:
            for step in range(state.step + 1, total + 1):
                start = starts[(step - 1) % len(starts)]
                if start == 0:
                    state.order = torch.randperm(records, generator=generator)
                index = world.part(state.order[start : start + batch])
                with state.random():
                    with descent.precision():
                        logits = forward(net, index)
                        value = loss(logits.float(), index)
                    if convolutions:
                        value = value + orthogonality * soft_orthogonality(convolutions)
                    norm = descent.step(value)
                state.step = step
                due = keeping is not None and step < total and keeping.due(step)
                watch.add(step, value, norm, check=due)
                if keeping is not None and due:
                    keeping.save(state.checkpoint())
                if world.leads:
                    progress(stage, step, total)
        model.eval()
        if keeping is not None:
            keeping.save(state.checkpoint())
    world.meet()


M = TypeVar("M", bound=nn.Module)


def placed(module: M, device: torch.device) -> M:
    """A module moved to a device, its convolutions in the layout that is fastest there, and safe."""
    if device.type == "cpu" and any(map(_overruns, module.modules())):
        plain: M = module.to(device=device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return plain
    moved: M = module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def _overruns(module: nn.Module) -> bool:
    """Whether the backward of a convolution in `channels_last` may write beyond its memory on the CPU.

    Strided 1×1 ones of fewer than 16 channels do in oneDNN (uxlfoundation/oneDNN issue 6035), on large images.
    """
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.in_channels // module.groups < 16
    )


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
