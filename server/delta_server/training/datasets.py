"""The data sets of a tenant with their jobs, and what these take of the tenant's share of the disk."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import ValidationError

from delta.errors import CloudStorageError
from delta.training.spec import DatasetSpec
from delta_server.training.jobs import SPEC, Job, read_job
from delta_server.training.store import ReleaseStore, record_bytes

__all__ = ["NAME", "Dataset", "Tenant", "children", "promised_bytes", "read_dataset"]

NAME = re.compile(r"[0-9a-f]{32}")
"""Form of the names of data sets and jobs."""

_SPEC_ROOM = 256 * 1024  # bytes that a data set is charged beside its releases


class Dataset:
    """A data set of one tenant, and its jobs by name."""

    def __init__(self, folder: Path, spec: DatasetSpec) -> None:
        self.folder = folder
        self.spec = spec
        self.store = ReleaseStore(folder, spec)
        self.jobs: dict[str, Job] = {}


class Tenant:
    """A tenant: the hash of their token, and their data sets by name."""

    def __init__(self, key: str, folder: Path) -> None:
        self.key = key
        self.folder = folder
        self.datasets: dict[str, Dataset] = {}

    @property
    def label(self) -> str:
        """What the log calls it."""
        return self.key[:8]

    def taken(self, *, besides: Path | None = None) -> int:
        """Bytes of the tenant's share that are taken: what data sets may come to, and what jobs have left.

        It looks on the disk; the event loop may change what is there meanwhile.

        Args:
            besides: folder of a job that is not counted.
        """
        total = 0
        for dataset in list(self.datasets.values()):
            jobs = [job for job in list(dataset.jobs.values()) if job.folder != besides]
            total += promised_bytes(dataset.spec) + sum(job.left_bytes() for job in jobs)
        return total


def promised_bytes(spec: DatasetSpec) -> int:
    """Bytes that a data set may come to, its jobs not counted."""
    return spec.records * record_bytes(spec) + _SPEC_ROOM


def read_dataset(folder: Path) -> Dataset | None:
    """A data set as its folder tells; none where it is damaged or was never there whole."""
    try:
        dataset = Dataset(folder, DatasetSpec.model_validate_json((folder / SPEC).read_bytes()))
    except (OSError, ValidationError, CloudStorageError):
        return None
    for home in children(folder / "jobs", NAME):
        job = read_job(home)
        if job is not None:
            dataset.jobs[home.name] = job
    return dataset


def children(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Folders of that form of name, in order."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name) and path.is_dir())
