"""Who has what: tenants by the hash of their token, their data sets, and the jobs of these.

FOLDER/lock                               held by the one server that uses the store
FOLDER/tenants/<SHA-256 of the token>/    made by the tenant's first data set, gone with the last one
    <data set>/                           spec.json, the releases, jobs/<job>/
FOLDER/trash/                             what is being deleted
FOLDER/promoted/                          models that are served (see promoted.py)
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

from delta.errors import (
    CloudDeniedError,
    CloudMismatchError,
    CloudOverloadedError,
    CloudStorageError,
    ConfigError,
    InputError,
    RequestError,
)
from delta.files import write_whole
from delta.training.spec import DatasetSpec, JobSpec
from delta.wire.training import UPLOAD_BYTES, encode_spec
from delta_server.config import ServerConfig
from delta_server.log import event
from delta_server.training.datasets import NAME, Dataset, Tenant, children, promised_bytes, read_dataset
from delta_server.training.jobs import SPEC, Job, read_job
from delta_server.training.promoted import Promoted

__all__ = ["Tenants", "tenant_key"]

_INPUT_ELEMENTS, _IR_ELEMENTS = 2**24, 2**26  # of one record: what a worker must hold for each of a batch
_HASH = re.compile(r"[0-9a-f]{64}")


class Tenants:
    """The store of a server, held by it alone.

    Args:
        folder: of the store; made if it is absent.
        config: its limits.
        promoted: its promoted models, whose owners are tenants, too.

    Raises:
        ConfigError: it cannot be used, or another server holds it.
    """

    def __init__(self, folder: Path, config: ServerConfig, promoted: Promoted) -> None:
        self._folder = folder
        self._promoted = promoted
        self._config = config
        self._tenants: dict[str, Tenant] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load()
        except BlockingIOError:
            os.close(self._lock)
            raise ConfigError(
                f"the store {folder} is in use by another server; stop that one, or give another folder"
            ) from None
        except OSError as error:
            raise ConfigError(f"the store {folder} cannot be used: {error.strerror}") from None

    def close(self) -> None:
        """Let another server have the store."""
        os.close(self._lock)

    def jobs(self) -> Iterator[Job]:
        """All jobs of all tenants."""
        for tenant in self._tenants.values():
            for dataset in tenant.datasets.values():
                yield from dataset.jobs.values()

    def changing(self, token: bytes) -> asyncio.Lock:
        """Held by whoever changes which data sets, jobs and models the tenant of a token has."""
        key = tenant_key(token)
        lock = self._locks.get(key)
        if lock is None:  # it lives as long as somebody holds it or waits for it
            lock = self._locks[key] = asyncio.Lock()
        return lock

    def knows(self, token: bytes) -> bool:
        """Whether the tenant of a token has data sets here."""
        return tenant_key(token) in self._tenants

    def tenant(self, token: bytes) -> Tenant:
        """The tenant of a token, who has data sets here.

        Raises:
            CloudDeniedError: there is none.
        """
        found = self._tenants.get(tenant_key(token))
        if found is None:
            raise _absent("data set")
        return found

    def make(self, token: bytes) -> Tenant:
        """The tenant of a token, entered if it is new.

        Raises:
            CloudOverloadedError: there are as many as there may be.
        """
        key = tenant_key(token)
        if key not in self._tenants:
            others = (self._tenants.keys() | self._promoted.owners) - {key}
            if len(others) >= self._config.tenants:
                raise CloudOverloadedError(
                    f"{self._config.tenants} tenants have data sets or models here already; ask the operator for room"
                )
            self._tenants[key] = Tenant(key, self._folder / "tenants" / key)
        return self._tenants[key]

    def leave(self, tenant: Tenant) -> None:
        """Forget a tenant without data sets."""
        if not tenant.datasets and self._tenants.get(tenant.key) is tenant:
            del self._tenants[tenant.key]

    def dataset(self, token: bytes, name: str) -> Dataset:
        """A data set of the tenant.

        Raises:
            CloudDeniedError: this tenant has none of that name.
        """
        found = self.tenant(token).datasets.get(name)
        if found is None:
            raise _absent("data set")
        return found

    def job(self, token: bytes, dataset: str, name: str) -> tuple[Dataset, Job]:
        """A job of the tenant, with its data set.

        Raises:
            CloudDeniedError: this tenant has none of that name.
        """
        owner = self.dataset(token, dataset)
        if name not in owner.jobs:
            raise _absent("job")
        return owner, owner.jobs[name]

    def create(self, tenant: Tenant, name: str, spec: DatasetSpec) -> Dataset:
        """Make a data set, or find it again; works on the disk; `changing` is held.

        Raises:
            CloudMismatchError: it exists with another specification.
            CloudStorageError: it is beyond the tenant's share, or cannot be written.
            RequestError: a release of that shape cannot be stored.
        """
        found = tenant.datasets.get(name)
        if found is not None:
            if found.spec != spec:
                raise CloudMismatchError(
                    "a data set of that name exists with another specification; choose another name or delete it"
                )
            return found
        self._check_room(tenant, spec)
        folder = tenant.folder / name
        try:
            self._discard(folder)  # what a crash left, or what could not be read
            write_whole(folder / SPEC, encode_spec(spec))
            made = tenant.datasets[name] = Dataset(folder, spec)
        except (OSError, InputError):
            shutil.rmtree(folder, ignore_errors=True)
            raise CloudStorageError("the cloud has no room for another data set; ask its operator") from None
        return made

    def start(self, dataset: Dataset, name: str, spec: JobSpec) -> Job:
        """Enter a job, or find it again; works on the disk; `changing` is held.

        Raises:
            CloudMismatchError: it exists with another specification.
            CloudOverloadedError: the data set has as many jobs as it may have.
            CloudStorageError: the tenant's share is full, or it cannot be written.
        """
        found = dataset.jobs.get(name)
        if found is not None:
            if found.spec != spec:
                raise CloudMismatchError(
                    "a job of that name exists with another specification; choose another name"
                )
            return found
        if len(dataset.jobs) >= self._config.dataset_jobs:
            raise CloudOverloadedError(
                f"the data set has {len(dataset.jobs)} jobs already; delete it, or ask the operator for more"
            )
        folder = dataset.folder / "jobs" / name
        self.check_share(folder)
        try:
            write_whole(folder / SPEC, encode_spec(spec))
        except InputError:
            raise CloudStorageError("the cloud has no room for another job; ask its operator") from None
        job = read_job(folder)
        if job is None:
            raise CloudStorageError("the job's specification cannot be read back; ask the cloud's operator")
        dataset.jobs[name] = job
        return job

    def check_share(self, folder: Path) -> None:
        """Refuse to train while the tenant's share is full without what this job has left; works on the disk.

        Weights and checkpoints are as large as the model that the tenant names: nobody knows beforehand. A job
        may outgrow the share, but no other one begins then.

        Args:
            folder: of the job.

        Raises:
            CloudStorageError: it is full.
        """
        tenant = self._tenants.get(folder.parents[2].name)
        taken = self._taken(tenant, job=folder) if tenant is not None else 0
        if taken >= self._config.tenant_bytes:
            raise CloudStorageError(
                f"this tenant's data sets and jobs take {taken} of {self._config.tenant_bytes} bytes; delete a "
                "data set, then start the job again"
            )

    def check_model(self, tenant: Tenant, name: str) -> None:
        """Refuse to promote under a name while the tenant's share is full without that model; works on the disk.

        Raises:
            CloudStorageError: it is full.
        """
        taken = self._taken(tenant, model=name)
        if taken >= self._config.tenant_bytes:
            raise CloudStorageError(
                f"this tenant's data sets, jobs and models take {taken} of {self._config.tenant_bytes} bytes; delete "
                "a data set or withdraw a model first"
            )

    def remove(self, tenant: Tenant, dataset: Dataset) -> None:
        """Delete what a data set left on the disk, its processes being ended: it is gone at once.

        Raises:
            OSError: it cannot be moved away.
        """
        dataset.store.close()
        self._discard(dataset.folder)
        with suppress(OSError):  # the tenant has others
            tenant.folder.rmdir()

    def _discard(self, folder: Path) -> None:
        if folder.exists():
            trash = self._folder / "trash"
            trash.mkdir(exist_ok=True)
            gone = trash / secrets.token_hex(16)
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _check_room(self, tenant: Tenant, spec: DatasetSpec) -> None:
        for what, sizes, most in (
            ("input", spec.release.input.shape, _INPUT_ELEMENTS),
            ("ir_shape", spec.release.ir_shape, _IR_ELEMENTS),
        ):
            if min(sizes) < 1 or math.prod(sizes) > most:
                raise RequestError(
                    f"{what} {tuple(sizes)}: sizes must be at least 1, and come to at most {most} elements here"
                )
        shape = spec.release.message.shape
        if min(shape) < 1 or spec.release.payload_bytes > UPLOAD_BYTES:
            raise RequestError(
                f"a release of shape {tuple(shape)} cannot be stored; its sizes must be at least 1 and its bits "
                f"at most {UPLOAD_BYTES} bytes"
            )
        needed, taken = promised_bytes(spec), self._taken(tenant)
        if taken + needed > self._config.tenant_bytes:
            raise CloudStorageError(
                f"the data set needs {needed} bytes, and {max(0, self._config.tenant_bytes - taken)} of "
                f"{self._config.tenant_bytes} are left to this tenant; delete another one first"
            )

    def _taken(self, tenant: Tenant, *, job: Path | None = None, model: str = "") -> int:
        return tenant.taken(besides=job) + self._promoted.taken(tenant.key, besides=model)

    def _load(self) -> None:
        shutil.rmtree(self._folder / "trash", ignore_errors=True)
        for folder in children(self._folder / "tenants", _HASH):
            tenant = Tenant(folder.name, folder)
            for home in children(folder, NAME):
                dataset = read_dataset(home)
                if dataset is None:
                    event("data set skipped", tenant=tenant.label)
                    continue
                tenant.datasets[home.name] = dataset
            if tenant.datasets:
                self._tenants[tenant.key] = tenant


def tenant_key(token: bytes) -> str:
    """What names a tenant here: SHA-256 in hex of the token."""
    return hashlib.sha256(token).hexdigest()


def _absent(what: str) -> CloudDeniedError:
    return CloudDeniedError(
        f"this tenant has no such {what}; create it first, or check the token and the name"
    )
