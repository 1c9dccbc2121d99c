"""The cloud's half of training: its own model, its own loss, on stored releases and declared labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delta.errors import CheckpointError, ConfigError
from delta.methods.delta.cloud import build_cloud_model
from delta.models.cloud_model import CloudModel
from delta.release.layout import unpack_patches
from delta.release.packing import unpack_bits
from delta.training.bags import mirrored_bags
from delta.training.checkpoint import CheckpointStore
from delta.training.descent import Descent
from delta.training.fit import Progress, Report, augmented, fit, logits_of, placed, quiet
from delta.training.fit_state import FitState
from delta.training.repeatable import repeatable
from delta.training.spec import DatasetSpec, JobSpec
from delta.training.world import ALONE, World

__all__ = [
    "InteractiveTrainer",
    "StoredReleases",
    "cloud_loss",
    "held_out_logits",
    "job_model",
    "train_on_releases",
]


@dataclass(frozen=True)
class StoredReleases:
    """What a cloud has stored of one data set, in upload order.

    Attributes:
        bits: packed bits, `[n, B]` uint8.
        labels: as disclosed, `[n]` int64; 0 where held out.
        held_out: `[n]` bool.
    """

    bits: Tensor
    labels: Tensor
    held_out: Tensor


def job_model(dataset: DatasetSpec, job: JobSpec, *, allowed: Collection[str] = ()) -> CloudModel:
    """M_res as the job declares it, its weights a function of the job's seed.

    Raises:
        ModelError: the target is not allowed, or does not build.
        ConfigError: the model has another number of classes.
    """
    with torch.random.fork_rng():
        torch.manual_seed(job.seed)
        model = build_cloud_model(job.architecture, dataset.release, allowed=allowed)
    with torch.inference_mode():
        blank = torch.zeros(2, dataset.release.payload_bytes, dtype=torch.uint8)
        classes = model.eval()(blank).shape[1]
    if classes != dataset.classes:
        raise ConfigError(f"the model has {classes} classes, the data set {dataset.classes}")
    return model


def cloud_loss(dataset: DatasetSpec, job: JobSpec) -> Callable[[Tensor, Tensor], Tensor]:
    """The cloud's own loss of logits `[b, classes]` and labels as disclosed `[b]`.

    Labels that went through randomized response are answered by the forward correction of Patrini et al. 2017
    (arXiv 1609.03683): the likelihood of the label as seen, given the model's belief and the public ε.
    """
    epsilon = dataset.labels.epsilon
    if epsilon is None:
        smoothing = job.label_smoothing
        return lambda logits, labels: nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    # P(seen) = other + (keep − other)·belief, in logarithms: a belief of 0 stays finite at every ε.
    spread = math.log1p((dataset.classes - 1) * math.exp(-epsilon))
    other = -epsilon - spread  # log of 1/(e^ε + k − 1), which each label but the true one has
    excess = math.log(-math.expm1(-epsilon)) - spread  # log of what the true one has above it

    def corrected(logits: Tensor, labels: Tensor) -> Tensor:
        belief = torch.log_softmax(logits.float(), dim=1).gather(1, labels[:, None])[:, 0]  # log, [b]
        return -torch.logaddexp(belief + excess, belief.new_tensor(other)).mean()

    return corrected


def train_on_releases(
    dataset: DatasetSpec,
    job: JobSpec,
    releases: StoredReleases,
    *,
    device: torch.device,
    allowed: Collection[str] = (),
    checkpoints: CheckpointStore | None = None,
    progress: Progress = quiet,
    report: Report | None = None,
    stage: str = "cloud model",
    world: World = ALONE,
) -> CloudModel:
    """Train M_res on the releases that are not held out; epochs over stored bits are post-processing.

    Args:
        dataset: what the releases are.
        job: what to train.
        releases: as stored.
        device: where to compute.
        allowed: import targets besides ours that the job may name.
        checkpoints: where to resume from and to keep the state.
        progress: told after every step.
        report: told the running loss now and then.
        stage: the name that `progress` is told.
        world: the processes that train together.

    Returns:
        The model on the CPU, in eval mode.

    Raises:
        ModelError: the architecture is not allowed or does not build.
        ConfigError: fewer than two records to train on.
    """
    model = placed(job_model(dataset, job, allowed=allowed), device)
    kept = (~releases.held_out).nonzero().flatten()
    if len(kept) < 2:
        raise ConfigError(f"{len(kept)} releases to train on; upload at least 2 that are not held out")
    bits, labels = releases.bits[kept].to(device), releases.labels[kept].to(device)
    generator = torch.Generator().manual_seed(job.seed)
    fit(
        model,
        lambda net, index: net(_views(bits[index], dataset, job, generator)),
        _indexed(cloud_loss(dataset, job), labels),
        records=len(kept),
        config=job.fit,
        generator=generator,
        progress=progress,
        stage=stage,
        checkpoints=checkpoints,
        precision=job.precision,
        world=world,
        report=report,
    )
    return model.cpu().eval()


def held_out_logits(model: CloudModel, releases: StoredReleases, *, device: torch.device) -> Tensor:
    """z_cloud of the held-out releases in upload order, `[h, classes]` float32 on the CPU."""
    bits = releases.bits[releases.held_out]
    model = model.to(device).eval()
    if not len(bits):
        return torch.empty(0, 0)
    return logits_of(lambda part: model(part.to(device)), bits)


class InteractiveTrainer:
    """M_res trained one exchange at a time; the private side sends the batches.

    Args:
        dataset: what the releases are.
        job: what to train; `steps` is set.
        device: where to compute.
        allowed: import targets besides ours that the job may name.
        checkpoints: where states are kept that the private side asks for; held until `close`.
        step: to go on from; 0, or one that is stored.

    Raises:
        ConfigError: the job has no number of steps.
        CheckpointError: no state of that step is stored, or another run holds the checkpoints.
    """

    def __init__(
        self,
        dataset: DatasetSpec,
        job: JobSpec,
        *,
        device: torch.device,
        allowed: Collection[str] = (),
        checkpoints: CheckpointStore | None = None,
        step: int = 0,
    ) -> None:
        if job.steps is None:
            raise ConfigError("an interactive job needs its number of steps, fixed beforehand")
        self.steps = job.steps
        self.model = placed(job_model(dataset, job, allowed=allowed), device)
        self._dataset, self._job, self._device = dataset, job, device
        self._checkpoints = checkpoints
        self._loss = cloud_loss(dataset, job)
        self._generator = torch.Generator().manual_seed(job.seed)
        self._descent = Descent(self.model, job.fit, steps=job.steps, precision=job.precision, device=device)
        self._state = FitState(self.model, self._descent, self._generator, steps=job.steps)
        with ExitStack() as stack:
            if checkpoints is not None:
                stack.enter_context(checkpoints.held())
            if step:
                self._resume(step)
            self._held = stack.pop_all()

    @property
    def step(self) -> int:
        """Steps done."""
        return self._state.step

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self._state.finished

    def exchange(self, bits: Tensor, labels: Tensor, *, update: bool, checkpoint: bool = False) -> Tensor:
        """z_cloud `[n, classes]` float32 of a batch, on the CPU; see `InteractiveSession.exchange`.

        Raises:
            ConfigError: an update of fewer than 2 records, or beyond the last step.
        """
        bits = bits.to(self._device)
        if not update:
            self.model.eval()
            with torch.inference_mode():
                answer: Tensor = self.model(bits)
            return answer.float().cpu().clone()
        if self.finished or len(bits) < 2:
            raise ConfigError(
                f"step {self.step + 1} of {self.steps} with {len(bits)} records: a step needs 2 records or "
                "more, and the number of steps is fixed"
            )
        self.model.train()
        with repeatable(self._device), self._state.random():
            with self._descent.precision():
                logits: Tensor = self.model(_views(bits, self._dataset, self._job, self._generator))
            self._descent.step(self._loss(logits.float(), labels.to(self._device)))
        self._state.step += 1
        if checkpoint and self._checkpoints is not None:
            self._checkpoints.save(self._state.checkpoint())
        return logits.detach().float().cpu()

    def close(self) -> None:
        """Let another run have the checkpoints; idempotent."""
        self._held.close()

    def _resume(self, step: int) -> None:
        stored = None if self._checkpoints is None else self._checkpoints.at(step)
        if stored is None:
            raise CheckpointError(
                f"no state of step {step} is stored; start the job again under another name"
            )
        self._state.restore(stored)


def _views(packed: Tensor, dataset: DatasetSpec, job: JobSpec, generator: torch.Generator) -> Tensor:
    """Shifted and mirrored bits as ±1 `[b, k, h_m, w_m]`, 0 where a shift leaves nothing; or as they came.

    Of shuffled ones patches are mirrored, and nothing is shifted.
    """
    shape, layout = dataset.release.message.shape, dataset.release.layout
    unmirrored = layout.patch is not None and not layout.mirror and "flip" not in job.augment
    if job.augment == "none" or unmirrored:
        return packed
    if layout.patch is not None:
        bits = unpack_patches(packed, shape, patch=layout.patch).float().mul_(2).sub_(1)
        return mirrored_bags(bits, layout, generator=generator)
    bits = unpack_bits(packed, shape).float().mul_(2).sub_(1)
    return augmented(bits, job.augment, generator=generator)


def _indexed(loss: Callable[[Tensor, Tensor], Tensor], labels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda logits, index: loss(logits, labels[index])
