"""Stage 2: every record is released once; a cloud trains on the bits; fusion is fitted on held-out records."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from delta.config import canonical_hash
from delta.errors import BudgetExceededError, CloudAnswerError, CloudTrainingError, CloudUnavailableError
from delta.methods.delta.fusion import check_answer, fuse
from delta.methods.delta.parts import PrivateParts
from delta.models.cloud_model import CloudModel
from delta.privacy.ledger import InMemoryLedger, Ledger
from delta.release.config import ReleaseConfig
from delta.release.ids import record_digest
from delta.release.noise import NoiseKey
from delta.training.checkpoint import FitStore
from delta.training.cloud import TrainingCloud, UploadChunk
from delta.training.cloud_trainer import job_model
from delta.training.config import TrainConfig
from delta.training.fit import Progress, logits_of, quiet
from delta.training.fusion import fit_alpha
from delta.training.inprocess import InProcessTrainingCloud
from delta.training.interactive import train_interactively
from delta.training.private_stage import PrivateStage
from delta.training.release_stage import architecture_of, build_release
from delta.training.spec import DatasetSpec, JobSpec
from delta.training.uploads import Uploads, make_uploads

__all__ = ["CloudStage", "Fusion", "Stage2", "fit_fusion", "train_cloud_stage"]

_ATTEMPTS = 6  # of an upload that is cut again and again without a single record more


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

    @torch.inference_mode()
    def main_logits(self, x: Tensor) -> Tensor:
        """z_main of preprocessed records, as this stage left the main model: `[n, classes]`."""
        parts = self.private
        return logits_of(
            lambda part: parts.main(parts.decomposer.main_input(parts.decomposer(parts.backbone(part)))), x
        )


@dataclass(frozen=True)
class Stage2:
    """Where stage 2 runs, and what it keeps.

    Attributes:
        cloud: that trains; none for one in this process.
        ledger: debited before anything is sent.
        folder: where released bytes are stored, so that a run that was cut sends the same; none for nowhere.
        store: checkpoints of the private side, and of a cloud in this process.
    """

    cloud: TrainingCloud | None = None
    ledger: Ledger = field(default_factory=lambda: InMemoryLedger(budget="unlimited"))
    folder: Path | None = None
    store: FitStore | None = None


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
    architecture = architecture_of(stage.split)
    release, parts = build_release(stage, config)
    started = time.perf_counter()
    uploads = _uploads(stage, config, release, parts, where=where, key=key)
    subjects = (*stage.fit.subjects, *stage.held_out.subjects)
    released = time.perf_counter()
    try:
        debited = where.ledger.debit(uploads.debits(release=release, labels=config.labels, subjects=subjects))
    except BudgetExceededError as error:
        unknown = "" if all(subjects) else "; records without a subject count as one person's"
        raise BudgetExceededError(
            f"the budget is too small for the data set, and nothing was sent: {error}{unknown}"
        ) from None
    cloud = where.cloud or InProcessTrainingCloud(
        device=config.device,
        allowed={architecture.target},
        store=where.store,
        progress=_labelled(progress, label),
    )
    classes = stage.split.classes
    dataset = DatasetSpec(release=release, classes=classes, records=len(uploads), labels=config.labels)
    job = JobSpec(
        architecture=architecture,
        fit=config.cloud_fit,
        augment=config.cloud_augment,
        precision=config.precision,
        seed=config.seed + 2,
    )
    before = (cloud.bytes_up, cloud.bytes_down)
    bad_answers = 0
    if config.mode == "one-shot":
        names = _names(uploads, dataset, job)
        told = progress if where.cloud is not None else quiet  # a cloud in this process tells by itself
        _upload(cloud, names[0], dataset, uploads, progress=told, label=f"upload, {label}")
        uploaded = time.perf_counter()
        cloud.start(*names, job)
        _wait(cloud, names, progress=told, label=label)
        rows = _checked(cloud.held_out_logits(*names), int(uploads.releases.held_out.sum()), classes)
        z_cloud = uploads.held_out_rows(rows, fit_records=len(stage.fit.y))
    else:
        uploaded = released
        outcome = train_interactively(
            stage,
            config,
            uploads,
            dataset,
            job,
            parts=parts,
            cloud=cloud,
            names=lambda spec: _names(uploads, dataset, spec),
            store=where.store,
            progress=progress,
            label=label,
        )
        names, z_cloud, bad_answers, parts = (
            outcome.names,
            outcome.held_out,
            outcome.bad_answers,
            outcome.parts,
        )
    model = _fetched(cloud.fetch(*names), job_model(dataset, job, allowed={architecture.target}))
    ended = time.perf_counter()
    held_out_bits = torch.empty(len(stage.held_out.y), release.payload_bytes, dtype=torch.uint8)
    places = uploads.origin[uploads.releases.held_out] - len(stage.fit.y)
    held_out_bits[places] = uploads.releases.bits[uploads.releases.held_out]
    result = CloudStage(
        private=parts,
        release=release,
        cloud=model,
        fusion=Fusion(config.fusion, 1.0, config.alpha_max, config.logit_bound),
        held_out_bits=held_out_bits,
        releases=len(uploads),
        debited=debited,
        bytes_up=cloud.bytes_up - before[0],
        bytes_down=cloud.bytes_down - before[1],
        bad_answers=bad_answers,
        job=names,
        seconds={"release": released - started, "upload": uploaded - released, "cloud": ended - uploaded},
    )
    fusion = fit_fusion(config, result.main_logits(stage.held_out.x), z_cloud, stage.held_out.y)
    return replace(result, fusion=fusion)


def _uploads(
    stage: PrivateStage,
    config: TrainConfig,
    release: ReleaseConfig,
    parts: PrivateParts,
    *,
    where: Stage2,
    key: NoiseKey | None,
) -> Uploads:
    """The stored releases, or new ones; the key is kept until they are stored, and then erased."""
    path = key_path = None
    if where.folder is not None:
        what = {
            "release": release.release_hash,
            "labels": config.labels.model_dump(mode="json"),
            "views": [config.views, config.augment if config.views > 1 else "none", config.seed],
            "records": [
                [list(r.ids), list(r.subjects), record_digest(r.x).hex()] for r in (stage.fit, stage.held_out)
            ],
            "told": record_digest(stage.fit.y).hex(),  # a corrected label is another upload
        }
        name = canonical_hash(what)[:16]
        path = where.folder / f"releases-{name}.safetensors"
        key_path = where.folder / f"releases-{name}.key"
        stored = Uploads.load(path)
        if stored is not None:
            key_path.unlink(missing_ok=True)
            return stored
        if key is None:
            key_path.parent.mkdir(parents=True, exist_ok=True)
            key = NoiseKey.at(key_path)
    uploads = make_uploads(
        parts,
        release,
        fit=stage.fit,
        held_out=stage.held_out,
        classes=stage.split.classes,
        labels=config.labels,
        key=key or NoiseKey.generate(),
        views=config.views,
        augment=config.augment,
        seed=config.seed,
        device=torch.device(config.device),
    )
    if path is not None and key_path is not None:
        uploads.save(path)
        key_path.unlink(missing_ok=True)
    return uploads


def _names(uploads: Uploads, dataset: DatasetSpec, job: JobSpec) -> tuple[str, str]:
    """Names of data set and job: functions of what the cloud gets anyway, so that a run finds its own again."""
    first = canonical_hash([uploads.digest(), dataset.model_dump(mode="json"), job.steps is not None])
    return first[:32], canonical_hash([first, job.model_dump(mode="json")])[:32]


def _upload(
    cloud: TrainingCloud,
    name: str,
    dataset: DatasetSpec,
    uploads: Uploads,
    *,
    progress: Progress,
    label: str,
) -> None:
    """Upload what the cloud has not acknowledged; a cut goes on from there, until it gets no further."""
    stored, attempts = _acknowledged(cloud.create(name, dataset), uploads), 0
    furthest = stored
    while stored < len(uploads):
        try:
            stored = cloud.upload(name, _told(uploads, stored, progress, label))
        except CloudUnavailableError as error:
            reason = error
            stored = cloud.create(name, dataset)
        else:
            reason = CloudUnavailableError("the cloud acknowledged less than was sent")
        attempts = 0 if _acknowledged(stored, uploads) > furthest else attempts + 1
        furthest = max(furthest, stored)  # a cloud that forgets and stores again in turn ends, too
        if attempts >= _ATTEMPTS:
            raise CloudUnavailableError(
                f"the upload got no further than {stored} of {len(uploads)} releases: {reason}; run again to go on"
            )
    progress(label, len(uploads), len(uploads))


def _acknowledged(stored: int, uploads: Uploads) -> int:
    """What the cloud says that it has stored, if that can be (I4)."""
    if not 0 <= stored <= len(uploads):
        raise CloudAnswerError(f"the cloud says that it has stored {stored} releases of {len(uploads)}")
    return stored


def _told(uploads: Uploads, start: int, progress: Progress, label: str) -> Iterator[UploadChunk]:
    for chunk in uploads.chunks(start=start):
        progress(label, chunk.first, len(uploads))
        yield chunk


def _wait(cloud: TrainingCloud, names: tuple[str, str], *, progress: Progress, label: str) -> None:
    """Watch a job to its end.

    Raises:
        CloudTrainingError: it failed or was cancelled.
    """
    state, told = None, 0
    for state in cloud.watch(*names):
        if state.steps and state.step > told:  # the end is told by two states
            told = state.step
            progress(label, min(state.step, state.steps), state.steps)
    if state is None or state.state != "done":
        what = "ended without a word" if state is None else state.state
        why = f": {state.message}" if state is not None and state.message else ""
        raise CloudTrainingError(f"the training in the cloud {what}{why}")


def _checked(logits: Tensor, records: int, classes: int) -> Tensor:
    return check_answer(logits, records=records, classes=classes)


def _fetched(weights: dict[str, Tensor], model: CloudModel) -> CloudModel:
    """The cloud's weights in a model built here: names, shapes, types and finiteness are checked (I4).

    Raises:
        CloudAnswerError: they are not this model's.
    """
    own = model.state_dict()
    if {n: (t.shape, t.dtype) for n, t in weights.items()} != {n: (t.shape, t.dtype) for n, t in own.items()}:
        raise CloudAnswerError(
            "the cloud's weights are not those of the declared model: names or shapes differ"
        )
    if not all(bool(torch.isfinite(t).all()) for t in weights.values()):
        raise CloudAnswerError("the cloud's weights are not finite")
    model.load_state_dict(weights)
    return model.cpu().eval()


def _labelled(progress: Progress, label: str) -> Callable[[str, int, int], None]:
    return lambda _, done, total: progress(label, done, total)
