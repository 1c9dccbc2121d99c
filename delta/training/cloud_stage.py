"""Stage 2: every record is released once; a cloud trains on the bits; fusion is fitted on held-out records."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from delta.errors import BudgetExceededError, CloudAnswerError
from delta.methods.delta.fusion import fuse
from delta.methods.delta.parts import PrivateParts
from delta.models.cloud_model import CloudModel
from delta.privacy.ledger import InMemoryLedger, Ledger
from delta.release.config import ReleaseConfig
from delta.release.noise import NoiseKey
from delta.training.checkpoint import FitStore
from delta.training.cloud import TrainingCloud
from delta.training.cloud_trainer import job_model
from delta.training.config import TrainConfig
from delta.training.fit import Progress, quiet
from delta.training.fusion import fit_alpha
from delta.training.inprocess import InProcessTrainingCloud
from delta.training.interactive import train_interactively
from delta.training.job_watch import PATIENCE_S
from delta.training.kept_uploads import kept_uploads
from delta.training.one_shot import train_one_shot
from delta.training.private_stage import PrivateStage, main_logits
from delta.training.release_stage import architecture_in_cloud, build_release
from delta.training.spec import DatasetSpec, JobSpec
from delta.training.task import Mode, Task
from delta.training.uploads import Uploads
from delta.training.weights import check_weights

__all__ = ["CloudStage", "Fusion", "Stage2", "fit_fusion", "train_cloud_stage"]

MODES: Mapping[str, Mode] = MappingProxyType({"one-shot": train_one_shot, "interactive": train_interactively})
"""The ways to run stage 2, by the name that a configuration gives them."""


@dataclass(frozen=True)
class Fusion:
    """A fitted fusion: α, its limit and B."""

    kind: str
    alpha: float
    alpha_max: float
    bound: float

    def accuracy(self, z_main: Tensor, z_cloud: Tensor, labels: Tensor) -> float:
        """Accuracy in percent of the fused logits."""
        fused = fuse(z_main, z_cloud, alpha=self.alpha, bound=self.bound)
        return 100.0 * float((fused.argmax(1) == labels).double().mean())


@dataclass(frozen=True)
class CloudStage:
    """What stage 2 leaves: the release, the cloud model trained on it, and the fusion.

    Attributes:
        private: modules of the private side, message map included; the main model as interactive training left it.
        release: the release configuration.
        cloud: M_res, trained on releases alone: the cloud's weights, checked, on the CPU.
        fusion: fitted on the held-out records.
        held_out_bits: their releases, `[n, B]`, in the order of the held-out records.
        releases: how many releases the cloud got, held-out ones and further views included.
        debited: how many of them the ledger had not entered before.
        bytes_up: serialised messages of the whole training, bytes.
        bytes_down: likewise, from the cloud.
        resumed: whether a part of it ran in an earlier process: bytes are then of the rest alone.
        bad_answers: exchanges of interactive training whose answer was not fit to use.
        job: data set and job, by the names under which the cloud knows them.
        seconds: of releasing, of uploading and of the cloud's training.
    """

    private: PrivateParts
    release: ReleaseConfig
    cloud: CloudModel
    fusion: Fusion
    held_out_bits: Tensor
    releases: int
    debited: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    resumed: bool = False
    bad_answers: int = 0
    job: tuple[str, str] = ("", "")
    seconds: dict[str, float] = field(default_factory=dict)

    def main_logits(self, x: Tensor) -> Tensor:
        """z_main of preprocessed records, as this stage left the main model: `[n, classes]`."""
        return main_logits(self.private.backbone, self.private.decomposer, self.private.main, x)


@dataclass(frozen=True)
class Stage2:
    """Where stage 2 runs, and what it keeps.

    Attributes:
        cloud: that trains; none for one in this process.
        ledger: debited before anything is sent.
        folder: where released bytes are stored, so that a run that was cut sends the same; none for nowhere.
        store: checkpoints of the private side, and of a cloud in this process.
        label_key: of label responses, so that every upload tells a label the same; none to draw them with the
            noise, anew in each.
        patience_s: seconds that a job may wait its turn, or take for a step, before the run gives up.
    """

    cloud: TrainingCloud | None = None
    ledger: Ledger = field(default_factory=lambda: InMemoryLedger(budget="unlimited"))
    folder: Path | None = None
    store: FitStore | None = None
    label_key: NoiseKey | None = None
    patience_s: float = PATIENCE_S


def fit_fusion(config: TrainConfig, z_main: Tensor, z_cloud: Tensor, labels: Tensor) -> Fusion:
    """Fit the fusion on held-out logits; `sum` is α = 1 and fits nothing."""
    alpha = 1.0
    if config.fusion == "calibrated":
        alpha = fit_alpha(z_main, z_cloud, labels, alpha_max=config.alpha_max, bound=config.logit_bound)
    return Fusion(config.fusion, alpha, max(config.alpha_max, alpha), config.logit_bound)


def train_cloud_stage(
    stage: PrivateStage,
    config: TrainConfig,
    *,
    where: Stage2 | None = None,
    key: NoiseKey | None = None,
    progress: Progress = quiet,
    label: str = "cloud model",
) -> CloudStage:
    """Run stage 2: release, debit, upload or exchange, train in the cloud, fetch, fit the fusion.

    Args:
        stage: stage 1.
        config: the release and the fit.
        where: the cloud, the ledger and the folder; none for a cloud in this process and nothing kept.
        key: noise key of the training uploads; a fresh one is drawn, and erased once they are stored.
        progress: told after every step.
        label: the name it is told.

    Raises:
        ConfigError: the cloud could not rebuild the model.
        BudgetExceededError: a subject's budget is too small for its records; nothing was sent.
        CloudError: the cloud failed; what is stored here and there stays, and the same call goes on from it.
    """
    where = where or Stage2()
    architecture = architecture_in_cloud(config, stage.split)
    release, parts = build_release(stage, config)
    started = time.perf_counter()
    uploads = kept_uploads(
        stage, config, release, parts, folder=where.folder, key=key, label_key=where.label_key
    )
    released = time.perf_counter()
    debited = _debit(where.ledger, stage, config, release, uploads)
    cloud = where.cloud or InProcessTrainingCloud(
        device=config.device,
        allowed={architecture.target},
        store=where.store,
        progress=lambda _, done, total: progress(label, done, total),
    )
    before = (cloud.bytes_up, cloud.bytes_down)
    task = Task(
        stage=stage,
        config=config,
        uploads=uploads,
        dataset=DatasetSpec(
            release=release, classes=stage.split.classes, records=len(uploads), labels=config.labels
        ),
        job=JobSpec(
            architecture=architecture,
            fit=config.cloud_fit,
            augment=config.cloud_augment,
            precision=config.precision,
            seed=config.seed + 2,
        ),
        parts=parts,
        cloud=cloud,
        store=where.store,
        progress=progress,
        told=quiet if where.cloud is None else progress,
        label=label,
        patience_s=where.patience_s,
    )
    outcome = MODES[config.mode](task)
    fresh = job_model(task.dataset, task.job, allowed={architecture.target})
    model = _fetched(cloud.fetch(*outcome.names, like=fresh.state_dict()), fresh)
    ended = time.perf_counter()
    private = outcome.parts
    z_main = main_logits(private.backbone, private.decomposer, private.main, stage.held_out.x)
    return CloudStage(
        private=private,
        release=release,
        cloud=model,
        fusion=fit_fusion(config, z_main, outcome.held_out, stage.held_out.y),
        held_out_bits=_held_out_bits(uploads, stage),
        releases=len(uploads),
        debited=debited,
        bytes_up=cloud.bytes_up - before[0],
        bytes_down=cloud.bytes_down - before[1],
        resumed=outcome.resumed,
        bad_answers=outcome.bad_answers,
        job=outcome.names,
        seconds={
            "release": released - started,
            "upload": outcome.upload_s,
            "cloud": ended - released - outcome.upload_s,
        },
    )


def _debit(
    ledger: Ledger, stage: PrivateStage, config: TrainConfig, release: ReleaseConfig, uploads: Uploads
) -> int:
    """Enter everything before anything is sent; returns how many entries were new."""
    subjects = (*stage.fit.subjects, *stage.held_out.subjects)
    try:
        return ledger.debit(uploads.debits(release=release, labels=config.labels, subjects=subjects))
    except BudgetExceededError as error:
        unknown = "" if all(subjects) else "; records without a subject count as one person's"
        raise BudgetExceededError(
            f"the budget is too small for the data set, and nothing was sent: {error}{unknown}"
        ) from None


def _held_out_bits(uploads: Uploads, stage: PrivateStage) -> Tensor:
    """Releases of the held-out records, in their order: `[h, B]`."""
    held_out = uploads.releases.held_out
    bits = torch.empty(len(stage.held_out.y), uploads.releases.bits.shape[1], dtype=torch.uint8)
    bits[uploads.origin[held_out] - len(stage.fit.y)] = uploads.releases.bits[held_out]
    return bits


def _fetched(weights: dict[str, Tensor], model: CloudModel) -> CloudModel:
    """The cloud's weights in a model built here: names, shapes, types and finiteness are checked (I4).

    Raises:
        CloudAnswerError: they are not this model's.
    """
    check_weights(weights, like=model.state_dict())
    if not all(bool(torch.isfinite(t).all()) for t in weights.values()):
        raise CloudAnswerError("the cloud's weights are not finite")
    model.load_state_dict(weights)
    return model.cpu().eval()
