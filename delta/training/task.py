"""Stage 2 as a task: what either mode is given, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from delta.config import canonical_hash
from delta.methods.delta.parts import PrivateParts
from delta.training.checkpoint import FitStore
from delta.training.cloud import TrainingCloud
from delta.training.config import TrainConfig
from delta.training.fit import Progress
from delta.training.job_watch import PATIENCE_S
from delta.training.private_stage import PrivateStage
from delta.training.spec import DatasetSpec, JobSpec
from delta.training.uploads import Uploads

__all__ = ["Mode", "Outcome", "Task"]


@dataclass(frozen=True)
class Task:
    """What a mode is given.

    Attributes:
        stage: stage 1.
        config: of the run.
        uploads: the stored releases, debited already.
        dataset: as the cloud is told.
        job: likewise.
        parts: the frozen private modules.
        cloud: that trains.
        store: checkpoints of the private side; none for nowhere.
        progress: told after every step.
        told: told while another process works; a cloud of this process tells by itself.
        label: the name both are told.
        patience_s: seconds that a job may wait its turn, or take for a step.
    """

    stage: PrivateStage
    config: TrainConfig
    uploads: Uploads
    dataset: DatasetSpec
    job: JobSpec
    parts: PrivateParts
    cloud: TrainingCloud
    store: FitStore | None
    progress: Progress
    told: Progress
    label: str
    patience_s: float = PATIENCE_S

    def names(self, job: JobSpec) -> tuple[str, str]:
        """Names of data set and job: functions of what the cloud gets anyway, so that a run finds its own again."""
        first = canonical_hash(
            [self.uploads.digest(), self.dataset.model_dump(mode="json"), job.steps is not None]
        )
        return first[:32], canonical_hash([first, job.model_dump(mode="json")])[:32]


@dataclass(frozen=True)
class Outcome:
    """What a mode leaves.

    Attributes:
        names: data set and job, by the names under which the cloud knows them.
        parts: the private modules, with the main model as the mode left it.
        held_out: z_cloud of the held-out records in their order, checked, `[h, classes]`.
        upload_s: seconds that the upload took by itself.
        resumed: whether a part of it ran in an earlier process.
        bad_answers: answers that were not fit to use.
    """

    names: tuple[str, str]
    parts: PrivateParts
    held_out: Tensor
    upload_s: float = 0.0
    resumed: bool = False
    bad_answers: int = 0


class Mode(Protocol):
    """One way to run stage 2: `train_one_shot` or `train_interactively`."""

    def __call__(self, task: Task) -> Outcome:
        """Run it.

        Raises:
            CloudError: the cloud failed; the same call goes on from what is stored.
        """
        ...
