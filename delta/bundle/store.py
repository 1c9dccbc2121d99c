"""Bundles on disk: written whole or not at all, every hash and shape checked on load, no pickle (I5)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from delta.bundle.manifest import SCHEMA_VERSION, Manifest, PrivateFacts
from delta.config import explain
from delta.errors import BundleError

__all__ = [
    "Bundle",
    "CloudPart",
    "check_replaceable",
    "export_cloud_part",
    "load_bundle",
    "load_cloud_part",
    "save_bundle",
    "serialise_weights",
    "weights_hash",
]

MANIFEST, FACTS = "manifest.json", "private.json"
CLOUD_WEIGHTS, PRIVATE_WEIGHTS = "cloud.safetensors", "private.safetensors"


@dataclass(frozen=True)
class CloudPart:
    """What the cloud gets of a bundle: the manifest and the cloud weights by name."""

    manifest: Manifest
    cloud: dict[str, Tensor]


@dataclass(frozen=True)
class Bundle:
    """A whole bundle.

    Attributes:
        manifest: what both sides must agree on.
        facts: what only the private side may read.
        private: everything that the private side loads, by name.
        cloud: the cloud weights by name.
        made_here: whether this process trained it: its import target is then the owner's own code. A bundle
            read from files is somebody's word, and its target needs leave (I5).
    """

    manifest: Manifest
    facts: PrivateFacts
    private: dict[str, Tensor]
    cloud: dict[str, Tensor]
    made_here: bool = False

    @property
    def cloud_part(self) -> CloudPart:
        """The part that the cloud gets."""
        return CloudPart(self.manifest, self.cloud)


def serialise_weights(tensors: dict[str, Tensor]) -> bytes:
    """Weights as safetensors bytes; the same weights give the same bytes."""
    return dump_tensors({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})


def weights_hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 in hex of the safetensors bytes."""
    return hashlib.sha256(serialise_weights(tensors)).hexdigest()


def save_bundle(bundle: Bundle, directory: Path) -> Path:
    """Write a bundle; an earlier one at that path is replaced only once the new one is complete.

    Raises:
        BundleError: the folder exists and is no bundle, or cannot be written.
    """
    files = {
        MANIFEST: bundle.manifest.model_dump_json(indent=1).encode(),
        FACTS: bundle.facts.model_dump_json(indent=1).encode(),
        CLOUD_WEIGHTS: serialise_weights(bundle.cloud),
        PRIVATE_WEIGHTS: serialise_weights(bundle.private),
    }
    _replace_folder(directory, files)
    return directory


def export_cloud_part(part: CloudPart, directory: Path) -> Path:
    """Write only what the cloud may have: the manifest and the cloud weights."""
    files = {
        MANIFEST: part.manifest.model_dump_json(indent=1).encode(),
        CLOUD_WEIGHTS: serialise_weights(part.cloud),
    }
    _replace_folder(directory, files)
    return directory


def load_cloud_part(directory: Path) -> CloudPart:
    """Read the manifest and the cloud weights; the private half need not be there.

    Raises:
        BundleError: a file is absent or damaged, or does not match the manifest.
    """
    manifest = _read_manifest(directory)
    cloud = _read_weights(directory / CLOUD_WEIGHTS, manifest.cloud_weights_hash)
    return CloudPart(manifest, cloud)


def load_bundle(directory: Path) -> Bundle:
    """Read a whole bundle.

    Raises:
        BundleError: a file is absent or damaged, or does not match the manifest.
    """
    part = load_cloud_part(directory)
    path = directory / FACTS
    if not path.exists():
        raise BundleError(
            f"{directory} holds only the cloud part ({FACTS} is missing); use the whole bundle here"
        )
    try:
        facts = PrivateFacts.model_validate_json(_read(path))
    except ValidationError as error:
        raise BundleError(f"{path} is not valid: {explain(error)}") from None
    private = _read_weights(directory / PRIVATE_WEIGHTS, facts.weights_hash)
    return Bundle(part.manifest, facts, private, part.cloud)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BundleError(
            f"{path.parent} is not a complete bundle: {path.name} is missing; make one with delta.train or "
            "`delta demo`"
        ) from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST
    text = _read(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise BundleError(f"{path} is not JSON; export the bundle again") from None
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(f"{path} has schema version {version!r}, this Delta reads {SCHEMA_VERSION}")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(f"{path} is not valid: {explain(error)}") from None


def _read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    data = _read(path)
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise BundleError(
            f"{path} does not match its manifest (SHA-256 {found[:12]}…, expected {expected[:12]}…); "
            "copy or export the bundle again"
        )
    try:
        return load_tensors(data)
    except (SafetensorError, KeyError) as error:  # a KeyError: an element type that PyTorch lacks
        raise BundleError(f"{path} is not a safetensors file of known element types: {error}") from None


def check_replaceable(
    directory: Path, names: Collection[str] = (MANIFEST, FACTS, CLOUD_WEIGHTS, PRIVATE_WEIGHTS)
) -> None:
    """Refuse a folder that a bundle may not be written to, before any work is done.

    Only files of those names may be replaced: a whole bundle is no target of an export, and files of the owner's
    are none of ours.

    Args:
        directory: where the bundle is to be.
        names: of the files that would be written; a whole bundle's by default.

    Raises:
        BundleError: the folder exists and holds something else.
    """
    if not directory.exists():
        return
    found = {path.name for path in directory.iterdir()} if directory.is_dir() else {directory.name}
    if not found <= set(names) or (found and MANIFEST not in found):
        strange = sorted(found - set(names)) or sorted(found)
        raise BundleError(
            f"{directory} exists and is not a bundle to replace: {strange[0]!r} in it would be lost; choose "
            "another folder"
        )


def _replace_folder(directory: Path, files: dict[str, bytes]) -> None:
    """Write files into a fresh folder beside the target, sync, and rename it into place."""
    directory = directory.absolute()
    check_replaceable(directory, files.keys())
    staging: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        for name, data in files.items():
            mode = 0o600 if name in (FACTS, PRIVATE_WEIGHTS) else 0o644
            with open(os.open(staging / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        staging.chmod(0o755)
        if directory.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
            directory.rename(retired / "bundle")
            staging.rename(directory)
            shutil.rmtree(retired)
        else:
            staging.rename(directory)
        staging = None
    except OSError as error:
        raise BundleError(f"bundle {directory} cannot be written: {error.strerror}") from None
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
