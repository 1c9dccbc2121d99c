"""What a run uploads: every record released once, labels as declared, in an order that tells nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from delta.bundle.store import serialise_weights
from delta.errors import CheckpointError
from delta.files import write_whole
from delta.methods.delta.parts import PrivateParts
from delta.privacy.events import RandomizedResponseLabel, release_event
from delta.privacy.ledger import Debit
from delta.release.config import ReleaseConfig
from delta.release.ids import RecordIds, record_digest
from delta.release.noise import NoiseKey
from delta.release.releaser import Releaser
from delta.training.cloud import UploadChunk
from delta.training.cloud_trainer import StoredReleases
from delta.training.config import Augmentation, LabelConfig
from delta.training.fit import augmented
from delta.training.labels import disclose_labels
from delta.training.private_stage import Labelled

__all__ = ["Uploads", "make_uploads", "release_records"]

_BATCH = 256


@dataclass(frozen=True)
class Uploads:
    """All releases of a run, in upload order.

    Attributes:
        releases: bits, labels as disclosed, and which are held out.
        origin: of each release, the index of its record: those of `fit` first, then those held out; `[n]`.
        release_ids: the HMAC that names each release, `[n, 32]` uint8.
        label_ids: the HMAC that names each label told by randomized response, in the order of `fit`,
            `[fit, 32]` uint8; `[0, 32]` where labels are disclosed.
    """

    releases: StoredReleases
    origin: Tensor
    release_ids: Tensor
    label_ids: Tensor

    def __len__(self) -> int:
        return len(self.origin)

    def digest(self) -> str:
        """SHA-256 in hex of what the cloud gets: bits, labels as disclosed, which are held out."""
        found = hashlib.sha256()
        for tensor in (self.releases.bits, self.releases.labels, self.releases.held_out):
            found.update(record_digest(tensor))
        return found.hexdigest()

    def chunks(self, *, start: int, records: int = 1024) -> Iterator[UploadChunk]:
        """The releases from `start` on, so many a message."""
        for first in range(start, len(self), records):
            part = slice(first, first + records)
            yield UploadChunk(
                first, self.releases.bits[part], self.releases.labels[part], self.releases.held_out[part]
            )

    def held_out_rows(self, logits: Tensor, *, fit_records: int) -> Tensor:
        """Rows in upload order, `[h, classes]`, brought into the order of the held-out records."""
        places = self.origin[self.releases.held_out] - fit_records
        rows = torch.empty_like(logits)
        rows[places] = logits
        return rows

    def debits(self, *, release: ReleaseConfig, labels: LabelConfig, subjects: Sequence[str]) -> list[Debit]:
        """What a ledger must enter before the first release is sent.

        Args:
            release: the release configuration.
            labels: how labels are disclosed.
            subjects: the person whom each record is about: those of `fit`, then those held out.
        """
        event = release_event(sigma=release.sigma, clip_norm=release.bounding.clip_norm)
        names = [bytes(row).hex() for row in self.release_ids.numpy()]
        entries = [
            Debit(subjects[place], name, event)
            for place, name in zip(self.origin.tolist(), names, strict=True)
        ]
        if labels.epsilon is not None:
            told = RandomizedResponseLabel(labels.epsilon)
            ids = [bytes(row).hex() for row in self.label_ids.numpy()]
            entries += [Debit(subjects[place], name, told) for place, name in enumerate(ids)]
        return entries

    def save(self, path: Path) -> None:
        """Store the bytes that were drawn: from now on they are what is sent, and their key can go.

        Raises:
            InputError: the file cannot be written.
        """
        data = serialise_weights(
            {
                "bits": self.releases.bits,
                "labels": self.releases.labels,
                "held_out": self.releases.held_out,
                "origin": self.origin,
                "release_ids": self.release_ids,
                "label_ids": self.label_ids,
            }
        )
        write_whole(path, data + hashlib.sha256(data).digest())

    @classmethod
    def load(cls, path: Path) -> Uploads | None:
        """What `save` stored; none where there is no such file.

        Raises:
            CheckpointError: the file is damaged: its releases may be in the cloud already, and must not be drawn
                again.
        """
        if not path.exists():
            return None
        data = path.read_bytes()
        try:
            if hashlib.sha256(data[:-32]).digest() != data[-32:]:
                raise ValueError
            stored = load_tensors(data[:-32])
            return cls(
                StoredReleases(stored["bits"], stored["labels"], stored["held_out"]),
                stored["origin"],
                stored["release_ids"],
                stored["label_ids"],
            )
        except (SafetensorError, KeyError, ValueError):
            raise CheckpointError(
                f"the stored releases {path} are damaged; restore the file, or start another run with another "
                "--out: its releases are new ones and will be debited"
            ) from None


def make_uploads(
    parts: PrivateParts,
    release: ReleaseConfig,
    *,
    fit: Labelled,
    held_out: Labelled,
    classes: int,
    labels: LabelConfig,
    key: NoiseKey,
    label_key: NoiseKey | None = None,
    views: int = 1,
    augment: Augmentation = "none",
    seed: int = 0,
    device: torch.device | None = None,
) -> Uploads:
    """Release every record once, train and held-out records mixed in keyed order.

    Args:
        parts: the frozen private modules.
        release: their configuration.
        fit: records to train on.
        held_out: records on which only α is fitted; their labels stay.
        classes: number of classes.
        labels: how labels are disclosed.
        key: noise key; noise and order come from it.
        label_key: of the label responses; none for `key`. One that is kept tells a label the same in every upload.
        views: releases of each record to train on; every further one is of an augmented image, and is a release
            of its own.
        augment: of the further views.
        seed: of the augmentation.
        device: where the backbone computes; none for the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    told, label_debits = disclose_labels(
        fit.y, records=fit.ids, subjects=fit.subjects, classes=classes, config=labels, key=label_key or key
    )
    batches = [fit]
    for view in range(1, views):
        ids = tuple(f"{name}#{view}" for name in fit.ids)
        batches.append(Labelled(_augmented(fit.x, augment, generator), fit.y, ids, fit.subjects))
    batches.append(held_out)
    found = [_release(parts, release, records, key=key, device=device) for records in batches]
    n, h = len(fit.y), len(held_out.y)
    order = torch.tensor(key.order([name for batch in batches for name in batch.ids]), dtype=torch.int64)
    origin = torch.cat([torch.arange(n).repeat(views), torch.arange(n, n + h)])
    sent = torch.cat([told.repeat(views), torch.zeros(h, dtype=torch.int64)])
    return Uploads(
        StoredReleases(torch.cat([bits for bits, _ in found])[order], sent[order], origin[order] >= n),
        origin[order],
        _rows([debit for _, debits in found for debit in debits])[order],
        _rows(label_debits),
    )


def release_records(
    parts: PrivateParts,
    release: ReleaseConfig,
    records: Labelled,
    *,
    key: NoiseKey,
    device: torch.device | None = None,
) -> Tensor:
    """Release each record once: packed bits `[n, B]`, stored and never drawn again."""
    return _release(parts, release, records, key=key, device=device)[0]


def _release(
    parts: PrivateParts,
    release: ReleaseConfig,
    records: Labelled,
    *,
    key: NoiseKey,
    device: torch.device | None,
) -> tuple[Tensor, list[Debit]]:
    if device is not None:
        parts.to(device)
    releaser = Releaser(
        release,
        backbone=parts.backbone,
        decomposer=parts.decomposer,
        message=parts.message,
        key=key,
        memo=None,
    )
    payloads, debits = [], []
    for start in range(0, len(records.y), _BATCH):
        stop = start + _BATCH
        ids = RecordIds(records=records.ids[start:stop], subjects=records.subjects[start:stop])
        released = releaser.release(records.x[start:stop], ids)
        payloads.append(released.payload)
        debits += released.debits
    if device is not None:
        parts.to(torch.device("cpu"))
    return torch.cat(payloads), debits


def _rows(debits: Sequence[Debit]) -> Tensor:
    """The names of releases, `[n, 32]` uint8."""
    data = bytearray(b"".join(bytes.fromhex(debit.release_id) for debit in debits))
    return (
        torch.frombuffer(data, dtype=torch.uint8).view(-1, 32)
        if data
        else torch.empty(0, 32, dtype=torch.uint8)
    )


def _augmented(x: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    return torch.cat([augmented(part, how, generator=generator) for part in torch.split(x, _BATCH)])
