"""Trained models that are served: each under a name that belongs to its tenant."""

from __future__ import annotations

import shutil
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

_OWNER, _PART = "owner", "part"


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
        ("architecture", manifest.architecture == job.spec.architecture),
        ("class_names", len(manifest.class_names) == spec.classes),
    ):
        if not same:
            raise CloudMismatchError(
                f"the manifest's {what} differs from what was trained; seal it for the job's own weights"
            )


class Promoted:
    """The promoted models of a store, one folder each.

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
        self._owners: dict[str, str] = {}

    def load(self) -> None:
        """Serve what was promoted before; what cannot be is skipped, and the log says so."""
        for home in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            try:
                owner = (home / _OWNER).read_text(encoding="ascii").strip()
                part = load_cloud_part(home / _PART)
                if part.manifest.name in self._models.models or part.manifest.name != home.name:
                    raise BundleError("the name is another model's")
                self._models.add(self._host(part))
            except (OSError, UnicodeDecodeError, DeltaError) as error:
                event("promoted model skipped", model=home.name, kind=type(error).__name__)
                continue
            self._owners[home.name] = owner

    def claim(self, tenant: Tenant, name: str) -> bool:
        """Reserve a name for a tenant; whether it is new to them.

        Raises:
            CloudMismatchError: the name is taken.
            CloudOverloadedError: the tenant has as many models as they may have.
        """
        owner = self._owners.get(name)
        if owner == tenant.key:
            return False
        if owner is not None or name in self._models.models:
            raise CloudMismatchError(f"a model named {name!r} is served here already; choose another name")
        if sum(key == tenant.key for key in self._owners.values()) >= self._config.tenant_models:
            raise CloudOverloadedError(
                f"this tenant has {self._config.tenant_models} models served already; promote under the name of "
                "one of them"
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
            write_whole(home / _OWNER, tenant.key.encode())
            export_cloud_part(part, home / _PART)
        except (BundleError, InputError):
            if fresh:
                shutil.rmtree(home, ignore_errors=True)
            raise CloudStorageError("the cloud has no room for another model; ask its operator") from None
        return hosted

    def serve(self, hosted: HostedModel) -> None:
        """Answer for a model from now on; on the event loop."""
        self._models.add(hosted)

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
