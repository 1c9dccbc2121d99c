"""What a run of `delta train` sends last: a promotion and a deletion, as the configuration says."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from delta.errors import CloudError, RequestError

if TYPE_CHECKING:
    from delta_client import GrpcTrainingCloud

    from delta.bundle.store import Bundle
    from delta.data.records import Dataset
    from delta.training.cloud_stage import CloudStage
    from delta.training.run_config import RunConfig

__all__ = ["Outbound"]


class Outbound:
    """Promotes and forgets, then ends the session. A failure is kept: the run's figures come first.

    Args:
        run: the configuration.
        training: the session.
        session: what is closed in the end, a cloud of ours included.
        public: records declared public, on which promotion is decided; none where it is not.
        forget: whether the data set is deleted.

    Attributes:
        promoted: whether the cloud serves the model.
        public_accuracy: percent that the cloud model alone reached on the public records.
        forgotten: whether the data set is gone.
        failure: why one of them failed.
    """

    def __init__(
        self,
        run: RunConfig,
        training: GrpcTrainingCloud,
        session: ExitStack,
        *,
        public: Dataset | None,
        forget: bool,
    ) -> None:
        self._run, self._training, self._session = run, training, session
        self._public, self._forget = public, forget
        self.promoted = self.forgotten = False
        self.public_accuracy: float | None = None
        self.failure: CloudError | RequestError | None = None

    def __call__(self, stage: CloudStage, bundle: Bundle) -> None:
        """Send what is to be sent; private records decide nothing of it."""
        try:
            if self._wanted(stage, bundle):
                self._training.promote(*stage.job, bundle.manifest)
                self.promoted = True
        except (CloudError, RequestError) as error:
            self.failure = error
        try:
            if self._forget:
                self._training.delete(stage.job[0])
                self.forgotten = True
        except (CloudError, RequestError) as error:
            self.failure = self.failure or error
        self._session.close()  # nothing more is sent, and a cloud of ours leaves its cores to what follows

    def lines(self) -> list[str]:
        """What came of it, a line each."""
        found = []
        if self.promoted:
            found.append(
                f"the cloud serves the model as {self._run.name!r} from now on, also after its data set is deleted"
            )
        elif self.public_accuracy is not None:
            found.append(
                f"the cloud does not serve the model: {self.public_accuracy:.1f} % on the public records is below "
                "what promote asks for"
            )
        if self.forgotten:
            found.append("the cloud has deleted the data set and its jobs")
        return found

    def _wanted(self, stage: CloudStage, bundle: Bundle) -> bool:
        import torch

        from delta.release.noise import NoiseKey
        from delta.training.controls import accuracy, cloud_logits
        from delta.training.private_stage import Labelled
        from delta.training.uploads import release_records

        promote = self._run.promote
        if promote in ("always", "never") or isinstance(promote, str) or self._public is None:
            return promote == "always"
        test = Labelled.of(self._public, bundle.manifest.input)
        bits = release_records(stage.private, stage.release, test, key=NoiseKey.generate())
        logits = cloud_logits(stage.cloud, bits, device=torch.device(self._run.device))
        self.public_accuracy = accuracy(logits, test.y)
        return self.public_accuracy >= promote.min_cloud_accuracy
