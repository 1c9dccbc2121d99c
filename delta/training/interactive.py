"""Interactive stage 2, the paper's exchange: a batch's bits up, z_cloud down, M_main on the merged loss.

The cloud steps on its own loss, the private side on its own: no gradient crosses (I3). Bits and labels are the
stored ones in every epoch, in batches that are fixed beforehand, whatever the cloud answers (I1).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from delta.errors import CloudAnswerError
from delta.methods.delta.fusion import check_answer
from delta.methods.delta.parts import PrivateParts
from delta.training.batches import batch_starts, steps_of
from delta.training.cloud import InteractiveSession
from delta.training.config import TrainConfig
from delta.training.descent import Descent
from delta.training.fit import augmented, placed
from delta.training.fit_state import FitState
from delta.training.repeatable import repeatable
from delta.training.task import Outcome, Task
from delta.training.uploads import Uploads

__all__ = ["MergedMain", "train_interactively"]

_STATES = 100  # that both sides store over a whole training


class MergedMain:
    """M_main in training on z_main + clip(z_cloud), and on z_main alone so that no cloud can steer it away."""

    def __init__(self, parts: PrivateParts, config: TrainConfig, *, steps: int, device: torch.device) -> None:
        self.model = placed(copy.deepcopy(parts.main).requires_grad_(True), device)
        self._parts = parts.to(device)
        self._bound, self._augment, self._device = config.logit_bound, config.augment, device
        fit = config.cloud_fit.model_copy(update={"learning_rate": config.merged_learning_rate})
        self.descent = Descent(self.model, fit, steps=steps, precision=config.precision, device=device)
        self.generator = torch.Generator().manual_seed(config.seed + 3)
        self.state = FitState(self.model, self.descent, self.generator, steps=steps)
        self.state.notes["bad_answers"] = 0

    def step(self, x: Tensor, y: Tensor, z_cloud: Tensor | None) -> None:
        """One step on records `[n, c, h, w]`, true labels `[n]` and z_cloud `[n, classes]`, if there is any."""
        x, y = x.to(self._device), y.to(self._device)
        self.model.train()
        with repeatable(self._device), self.state.random():
            with torch.no_grad():
                images = augmented(x, self._augment, generator=self.generator)
                parts = self._parts.decomposer(self._parts.backbone(images))
                view = self._parts.decomposer.main_input(parts)
            with self.descent.precision():
                z_main: Tensor = self.model(view).float()
            loss = nn.functional.cross_entropy(z_main, y)
            if z_cloud is not None:
                merged = z_main + z_cloud.to(self._device).clamp(-self._bound, self._bound)
                loss = 0.5 * (loss + nn.functional.cross_entropy(merged, y))
            self.descent.step(loss)
        self.state.step += 1
        self.state.notes["bad_answers"] += z_cloud is None


def train_interactively(task: Task) -> Outcome:
    """Exchange every batch of every epoch, then ask for the held-out records.

    Both sides store their state at the same steps, the cloud first: a side that was killed goes on from the last
    one that both have. Batches, labels and bits are fixed beforehand.

    Raises:
        CloudError: the cloud failed; the same call goes on from the last state that both sides have.
    """
    config, uploads, parts = task.config, task.uploads, task.parts
    kept = (~uploads.releases.held_out).nonzero().flatten()
    batch = min(config.cloud_fit.batch, len(kept))
    starts, steps = batch_starts(len(kept), config.cloud_fit), steps_of(len(kept), config.cloud_fit)
    job = task.job.model_copy(update={"steps": steps})
    names = task.names(job)
    main = MergedMain(parts, config, steps=steps, device=torch.device(config.device))
    state = main.state
    identity = [*names, config.model_dump(mode="json", exclude={"budget", "name"})]
    checkpoints = None if task.store is None else task.store.of("merged", identity)
    stride = -(-steps // _STATES)  # by steps, not by the clock: what is sent must not depend on it (I1)
    with nullcontext() if checkpoints is None else checkpoints.resumed() as stored:
        if stored is not None:
            state.restore(stored)
        begun = state.step
        task.cloud.create(names[0], task.dataset)
        with task.cloud.interact(*names, job, step=begun) as session:
            for step, index in _batches(kept, batch, starts, config):
                if step <= begun:
                    continue
                due = checkpoints is not None and (step % stride == 0 or step == steps)
                z_cloud = _answer(session, uploads, index, checkpoint=due, classes=task.dataset.classes)
                places = uploads.origin[index]
                main.step(task.stage.fit.x[places], task.stage.fit.y[places], z_cloud)
                if checkpoints is not None and due:
                    checkpoints.save(state.checkpoint())
                task.progress(task.label, step, steps)
            rows = _held_out(session, uploads, batch, task.dataset.classes)
    trained = replace(parts.to(torch.device("cpu")), main=main.model.cpu().eval().requires_grad_(False))
    held_out = uploads.held_out_rows(rows, fit_records=len(task.stage.fit.y))
    return Outcome(names, trained, held_out, resumed=begun > 0, bad_answers=int(state.notes["bad_answers"]))


def _batches(
    kept: Tensor, batch: int, starts: list[int], config: TrainConfig
) -> Iterator[tuple[int, Tensor]]:
    """Each step's positions in the upload; a function of public settings and of the upload's keyed order."""
    generator = torch.Generator().manual_seed(config.seed + 2)
    step = 0
    for _ in range(config.cloud_fit.epochs):
        order = kept[torch.randperm(len(kept), generator=generator)]
        for start in starts:
            step += 1
            yield step, order[start : start + batch]


def _answer(
    session: InteractiveSession, uploads: Uploads, index: Tensor, *, checkpoint: bool, classes: int
) -> Tensor | None:
    """z_cloud of a batch, or none where the answer is not fit to use (I4)."""
    releases = uploads.releases
    answer = session.exchange(
        releases.bits[index], releases.labels[index], update=True, checkpoint=checkpoint
    )
    try:
        return check_answer(answer, records=len(index), classes=classes)
    except CloudAnswerError:
        return None


def _held_out(session: InteractiveSession, uploads: Uploads, batch: int, classes: int) -> Tensor:
    """z_cloud of the held-out records in upload order, asked for in batches of one size."""
    bits = uploads.releases.bits[uploads.releases.held_out]
    labels = torch.zeros(len(bits), dtype=torch.int64)
    rows = []
    for start in range(0, len(bits), batch):
        part = slice(start, start + batch)
        answer = session.exchange(bits[part], labels[part], update=False)
        rows.append(check_answer(answer, records=len(bits[part]), classes=classes))
    return torch.cat(rows)
