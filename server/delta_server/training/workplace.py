"""What every worker process begins with: its arguments, its job's files, and its end with the server's."""

from __future__ import annotations

import argparse
import fcntl
import os
import resource
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from delta.config import canonical_hash
from delta.device import device_of
from delta.errors import CheckpointError, CloudError, ConfigError, DeltaError, ModelError, RequestError
from delta.models.targets import OURS
from delta.training.checkpoint import CheckpointStore, checkpoint_steps
from delta.training.spec import DatasetSpec, JobSpec
from delta.wire.status import public_text
from delta_server.log import event
from delta_server.training.jobs import CHECKPOINTS, SPEC

__all__ = ["Workplace", "end_with_input", "explained", "own_output"]

_NO_MEMORY = "can't allocate memory"  # what torch's allocator of the CPU says in a RuntimeError
_OOM_SCORE = "500"  # of 1000: the system that runs out of memory ends a job before it ends the server


@dataclass(frozen=True)
class Workplace:
    """A worker's job.

    Attributes:
        folder: of the job.
        dataset: what the releases are.
        job: what to train.
        device: where to compute.
        allowed: import targets besides ours.
        step: of an interactive job, to go on from.
    """

    folder: Path
    dataset: DatasetSpec
    job: JobSpec
    device: torch.device
    allowed: frozenset[str]
    step: int

    @classmethod
    def of(cls, arguments: Sequence[str] | None) -> Workplace:
        """Read the arguments and the specifications that they lead to."""
        parser = argparse.ArgumentParser(description="Train a job of this server.")
        parser.add_argument("--job", type=Path, required=True)
        parser.add_argument("--device", default="cpu")
        parser.add_argument("--threads", type=int)
        parser.add_argument("--allow", action="append", default=[])
        parser.add_argument("--memory", type=int)
        parser.add_argument("--step", type=int, default=0)
        options = parser.parse_args(arguments)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        _yield_memory(options.memory)
        folder: Path = options.job
        return cls(
            folder=folder,
            dataset=DatasetSpec.model_validate_json((folder.parent.parent / SPEC).read_bytes()),
            job=JobSpec.model_validate_json((folder / SPEC).read_bytes()),
            device=device_of(options.device),
            allowed=frozenset(options.allow),
            step=options.step,
        )

    @property
    def home(self) -> Path:
        """Folder of the data set."""
        return self.folder.parent.parent

    def checkpoints(self) -> CheckpointStore:
        """Of this job."""
        identity = canonical_hash(
            {"dataset": self.dataset.model_dump(mode="json"), "job": self.job.model_dump(mode="json")}
        )
        return CheckpointStore(self.folder / CHECKPOINTS, identity=identity, every_steps=checkpoint_steps())

    def occupy(self) -> None:
        """Wait until a worker that a dead server left has ended, and keep others out until this one has."""
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)


def own_output() -> IO[bytes]:
    """Standard output for the server alone: what else prints, prints to the log."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output


def end_with_input() -> None:
    """End this process at once when standard input does: the server has died, or wants this to end."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="delta-end-with-input", daemon=True).start()


def explained(error: BaseException, target: str) -> str:
    """What a tenant may read of why its job failed; the log gets the kind and the place.

    Args:
        error: as raised.
        target: of the job's architecture.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    event("training failed", kind=type(error).__name__, where=where)
    # The text of another's target may say where its code lies on this machine.
    if isinstance(error, (CloudError, RequestError, ConfigError)):
        return str(error)
    if isinstance(error, ModelError) and target in OURS:
        return str(error)
    if isinstance(error, CheckpointError):
        return "the job's state cannot be stored, or read again; the cloud's operator must make room"
    if isinstance(error, DeltaError):
        return public_text(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _NO_MEMORY in str(error):
        return "the cloud has not enough memory for this job; take a smaller batch or model"
    return "the training failed; see the cloud's log"


def _yield_memory(most_bytes: int | None) -> None:
    """Stand before the server where memory is short, and map no more than so many bytes."""
    with suppress(OSError):  # a system without such scores
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    if most_bytes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
