"""Trained models that are served: each under a name that belongs to its tenant."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file

from delta.bundle.manifest import Manifest
from delta.bundle.store import CloudPart, export_cloud_part, load_cloud_part
from delta.errors import (
    BundleError,
    CloudMismatchError,
    CloudOverloadedError,
    CloudStorageError,
    DeltaError,
    InputError,
    ModelError,
)
from delta.files import write_whole
from delta.methods.registry import method_class
from delta_server.config import ServerConfig
from delta_server.log import event
from delta_server.models import HostedModel, ModelStore, host_part
from delta_server.training.datasets import Dataset, Tenant
from delta_server.training.jobs import Job
from delta_server.training.result import WEIGHTS, JobResult

__all__ = ["Promoted", "check_manifest"]

_OWNER, _JOB, _PART = "owner", "job", "part"
_GONE = ".gone-"  # of what is being deleted; no model is named so


def check_manifest(manifest: Manifest, dataset: Dataset, job: Job, result: JobResult) -> None:
    """Refuse a manifest that does not speak of what was trained.

    Raises:
        CloudMismatchError: naming the first entry that differs.
    """
    spec = dataset.spec
    for what, same in (
        ("cloud_weights_hash", manifest.cloud_weights_hash == result.weights_hash),
        ("release", manifest.release == spec.release),
        ("input", manifest.input == spec.release.input),
        ("architecture", manifest.architecture_in_cloud == job.spec.architecture),
        ("class_names", len(manifest.class_names) == spec.classes),
    ):
        if not same:
            raise CloudMismatchError(
                f"the manifest's {what} differs from what was trained; seal it for the job's own weights"
            )


class Promoted:
    """The promoted models of a store, one folder each; they outlive their data sets and jobs.

    FOLDER/<model>/owner    SHA-256 of the tenant's token
                   job      names of the data set and the job that it came from
                   part/    manifest and weights

    Args:
        folder: holds them.
        models: where they are served from.
        config: of the server.
        message_bytes: largest message that the server takes.
    """

    def __init__(self, folder: Path, models: ModelStore, config: ServerConfig, *, message_bytes: int) -> None:
        self._folder = folder
        self._models = models
        self._config = config
        self._message_bytes = message_bytes
        self._bundles = frozenset(models.models)
        self._owners: dict[str, str] = {}

    @property
    def owners(self) -> frozenset[str]:
        """Keys of the tenants that have models here."""
        return frozenset(self._owners.values()) - {""}

    def taken(self, key: str, *, besides: str = "") -> int:
        """Bytes that a tenant's models take on the disk, one model of theirs not counted."""
        mine = [name for name, owner in list(self._owners.items()) if owner == key and name != besides]
        total = 0
        for name in mine:
            for home, _, files in os.walk(self._folder / name):
                for file in files:
                    with suppress(OSError):  # it is gone
                        total += os.lstat(os.path.join(home, file)).st_size
        return total

    def load(self) -> None:
        """Serve what was promoted before; what cannot be is skipped, and the log says so. Its name stays taken."""
        for home in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            if home.name.startswith(_GONE):
                shutil.rmtree(home, ignore_errors=True)
                continue
            self._owners[home.name] = ""  # nobody's, until it is read whose
            try:
                self._owners[home.name] = (home / _OWNER).read_text(encoding="ascii").strip()
                part = load_cloud_part(home / _PART)
                if part.manifest.name in self._models.models or part.manifest.name != home.name:
                    raise BundleError("the name is another model's")
                self._models.add(self._host(part))
            except (OSError, UnicodeDecodeError, DeltaError) as error:
                event("promoted model skipped", model=home.name, kind=type(error).__name__)

    def claim(self, tenant: Tenant, name: str) -> bool:
        """Reserve a name for a tenant; whether it is new to them.

        Raises:
            CloudMismatchError: the name is taken.
            CloudOverloadedError: the tenant, or all tenants, have as many models as they may have.
        """
        owner, bundled = self._owners.get(name), name in self._bundles
        if owner == tenant.key and not bundled:
            return False
        if owner is not None or bundled or (self._folder / name).exists():
            raise CloudMismatchError(f"a model named {name!r} is served here already; choose another name")
        if sum(key == tenant.key for key in self._owners.values()) >= self._config.tenant_models:
            raise CloudOverloadedError(
                f"this tenant has {self._config.tenant_models} models served already; promote under the name of "
                "one of them"
            )
        if len(self._owners) >= self._config.promoted_models:
            raise CloudOverloadedError(
                f"{self._config.promoted_models} trained models are served here already; ask the operator for room"
            )
        self._owners[name] = tenant.key
        return True

    def release(self, name: str) -> None:
        """Give a claimed name back; nothing was promoted under it."""
        del self._owners[name]

    def make(self, tenant: Tenant, manifest: Manifest, job: Job) -> HostedModel:
        """Build the model and keep it; touches the disk, under a claimed name.

        Raises:
            CloudMismatchError: the weights do not fit the manifest, or the model cannot be served here.
            CloudStorageError: it cannot be written.
            UnknownMethodError: no method of that name.
        """
        try:
            part = CloudPart(manifest, load_file(job.folder / WEIGHTS))
            hosted = self._host(part)
        except (BundleError, ModelError, OSError):
            raise CloudMismatchError(
                "the trained weights do not fit the manifest's method and architecture; use those of the job"
            ) from None
        home = self._folder / manifest.name
        fresh = not home.exists()
        try:
            if manifest.name not in self._models.models:  # its tenant replaces what could not be served
                shutil.rmtree(home / _PART, ignore_errors=True)
            write_whole(home / _OWNER, tenant.key.encode())
            write_whole(home / _JOB, _source(job.folder.parents[1].name, job.folder.name))
            export_cloud_part(part, home / _PART)
        except (BundleError, InputError):
            if fresh:
                shutil.rmtree(home, ignore_errors=True)
            raise CloudStorageError("the cloud has no room for another model; ask its operator") from None
        return hosted

    def serve(self, hosted: HostedModel) -> None:
        """Answer for a model from now on; on the event loop."""
        self._models.add(hosted)

    def withdraw(self, key: str, dataset: str, job: str) -> int:
        """Serve what a tenant promoted from a job no longer, and delete it; returns how many models that were.

        Args:
            key: of the tenant.
            dataset: name of the job's data set, which may be deleted.
            job: its name.

        Raises:
            CloudStorageError: it cannot be deleted.
        """
        found = 0
        for name in [name for name, owner in self._owners.items() if owner == key]:
            home = self._folder / name
            gone = self._folder / f"{_GONE}{secrets.token_hex(16)}"
            try:
                if (home / _JOB).read_bytes() != _source(dataset, job):
                    continue
                home.rename(gone)
            except FileNotFoundError:  # it is being promoted, or from before jobs were noted
                continue
            except OSError:
                raise CloudStorageError("the model cannot be deleted; ask the cloud's operator") from None
            if name not in self._bundles:
                self._models.remove(name)
            del self._owners[name]
            shutil.rmtree(gone, ignore_errors=True)
            found += 1
        return found

    def _host(self, part: CloudPart) -> HostedModel:
        config = self._config
        half = method_class(part.manifest.method).cloud_half(
            part, device=torch.device(config.device), allowed=config.allow
        )
        hosted = host_part(
            part,
            half,
            exchange_message_bytes=config.exchange_message_bytes,
            queue_records=config.queue_records,
        )
        if not hosted.payload_bytes or hosted.max_message_bytes > self._message_bytes:
            raise CloudMismatchError(
                "this server cannot serve such a model beside its training: it takes messages of "
                f"{self._message_bytes} bytes; export the bundle and serve it with --bundle"
            )
        return hosted


def _source(dataset: str, job: str) -> bytes:
    return f"{dataset}/{job}".encode()
