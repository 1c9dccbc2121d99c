"""The data set contract: records with an opaque id, a subject, an image and a label."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from delta.errors import DataError

__all__ = ["DataSplits", "Dataset", "Record", "opaque_ids"]


@dataclass(frozen=True, eq=False)
class Record:
    """One input.

    Attributes:
        id: the owner's opaque name of it.
        subject: the person it is about; empty where unknown.
        image: `[c, h, w]` float32 in [0, 1].
        label: index of its class.
    """

    id: str
    subject: str
    image: Tensor
    label: int


@dataclass(frozen=True, eq=False)
class Dataset:
    """Records held in memory.

    Attributes:
        name: of the data, as reports show it.
        pixels: `[n, c, h, w]`, uint8, or float32 in [0, 1].
        labels: `[n]` int64.
        class_names: one a class, in label order.
        ids: one opaque id a record, all different; neither ids nor order may carry the class.
        subjects: the person whom each record is about; empty where unknown.

    Raises:
        DataError: shapes, types, counts or labels disagree.
    """

    name: str
    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    subjects: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.pixels.dim() != 4 or self.pixels.dtype not in (torch.uint8, torch.float32):
            got = f"{str(self.pixels.dtype).removeprefix('torch.')}{list(self.pixels.shape)}"
            raise DataError(
                f"data set {self.name!r}: pixels must be uint8 or float32 [n, c, h, w], got {got}"
            )
        if not n == len(self.pixels) == len(self.subjects) == self.labels.numel():
            raise DataError(
                f"data set {self.name!r}: {len(self.pixels)} images, {self.labels.numel()} labels, {n} ids "
                f"and {len(self.subjects)} subjects; all must be equal"
            )
        if self.labels.dim() != 1 or self.labels.dtype != torch.int64:
            raise DataError(f"data set {self.name!r}: labels must be int64 [n]")
        if n and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.class_names):
            raise DataError(f"data set {self.name!r}: labels must lie in [0, {len(self.class_names)})")
        if len(set(self.ids)) != n:
            raise DataError(f"data set {self.name!r}: record ids must be different from each other")
        if self.pixels.dtype == torch.float32 and n and not self._in_unit_interval():
            raise DataError(f"data set {self.name!r}: float pixels must lie in [0, 1]; divide by 255 first")

    @classmethod
    def of(
        cls,
        *,
        name: str,
        pixels: Tensor,
        labels: Tensor,
        class_names: Sequence[str],
        seed: int = 0,
        ids: Sequence[str] | None = None,
        subjects: Sequence[str] | None = None,
    ) -> Dataset:
        """A data set, with opaque ids and unknown subjects where none are given; see the attributes."""
        return cls(
            name=name,
            pixels=pixels,
            labels=labels,
            class_names=tuple(class_names),
            ids=opaque_ids(pixels, seed=seed) if ids is None else tuple(ids),
            subjects=("",) * len(pixels) if subjects is None else tuple(subjects),
        )

    @property
    def images(self) -> Tensor:
        """`[n, c, h, w]` float32 in [0, 1]; converted anew on each access where the pixels are uint8."""
        return _as_unit_interval(self.pixels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(c, h, w)`."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        return Record(
            id=self.ids[index],
            subject=self.subjects[index],
            image=_as_unit_interval(self.pixels[index]),
            label=int(self.labels[index]),
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def fingerprint(self) -> str:
        """SHA-256 in hex of pixels and labels: tells two data sets apart, whatever their names."""
        digest = hashlib.sha256(f"{self.pixels.dtype} {tuple(self.pixels.shape)}".encode())
        digest.update(self.pixels.contiguous().numpy().tobytes())
        digest.update(self.labels.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | Tensor) -> Dataset:
        """The records at these indices, in their order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        positions = chosen.tolist()
        return Dataset(
            name=self.name,
            pixels=self.pixels[chosen],
            labels=self.labels[chosen],
            class_names=self.class_names,
            ids=tuple(self.ids[i] for i in positions),
            subjects=tuple(self.subjects[i] for i in positions),
        )

    def limited(self, count: int | None, *, seed: int) -> Dataset:
        """At most `count` records, each class in proportion, in a seeded order; all of them for none.

        A larger count keeps the records of a smaller one where the classes are of equal size.

        Raises:
            DataError: the count is below one record a class.
        """
        if count is None or count >= len(self):
            return self
        return self.subset(stratified(self.labels, count, seed=seed, what=f"data set {self.name!r}"))

    def stratified_split(self, *, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Split off a fraction of the records, each class in proportion.

        Args:
            fraction: of the records in the second part, in (0, 1).
            seed: of the choice and of both orders.

        Returns:
            The rest, and the part split off.

        Raises:
            DataError: the fraction leaves a part without a record of each class.
        """
        count = round(fraction * len(self))
        kept = stratified(self.labels, count, seed=seed, what=f"data set {self.name!r}")
        mask = torch.ones(len(self), dtype=torch.bool)
        mask[kept] = False
        rest = mask.nonzero().flatten()
        if not torch.equal(_present(self.labels[rest]), _present(self.labels)):
            raise DataError(
                f"data set {self.name!r}: a split at {fraction:g} empties a class; use more records"
            )
        shuffle = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
        return self.subset(rest[shuffle]), self.subset(kept)

    def _in_unit_interval(self) -> bool:
        low, high = torch.aminmax(self.pixels)  # NaN spreads, and fails both comparisons
        return bool(low >= 0.0) and bool(high <= 1.0)


@dataclass(frozen=True, eq=False)
class DataSplits:
    """Records to train on, and records to test on.

    Raises:
        DataError: the two differ in classes or image shape.
    """

    train: Dataset
    test: Dataset

    def __post_init__(self) -> None:
        if self.train.class_names != self.test.class_names or self.train.image_shape != self.test.image_shape:
            raise DataError(
                f"data set {self.name!r}: train has {len(self.train.class_names)} classes of images "
                f"{self.train.image_shape}, test has {len(self.test.class_names)} of {self.test.image_shape}"
                "; they must be the same"
            )

    @property
    def name(self) -> str:
        """Of the data, as reports show it."""
        return self.train.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """One a class, in label order."""
        return self.train.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(c, h, w)`."""
        return self.train.image_shape

    def limited(self, limit: int | None, *, test_limit: int | None = None, seed: int = 0) -> DataSplits:
        """At most `limit` training records; the test set is cut in the same proportion, or to `test_limit`.

        Raises:
            DataError: a count is below one record a class.
        """
        if test_limit is None:
            test_limit = proportional_limit(limit, len(self.train), len(self.test), len(self.class_names))
        return DataSplits(self.train.limited(limit, seed=seed), self.test.limited(test_limit, seed=seed))


def proportional_limit(limit: int | None, train: int, test: int, classes: int) -> int | None:
    """The cap on `test` records that goes with a cap of `limit` on `train` records: one a class at least."""
    if limit is None or limit >= train:
        return None
    return max(round(test * limit / train), classes)


def opaque_ids(pixels: Tensor, *, seed: int) -> tuple[str, ...]:
    """Ids of 128 bits that depend on a record's content and a seed, not on its class, place or file name.

    The same image keeps its id whatever subset it comes in; an equal image gets another one. Whoever knows
    the seed and guesses a whole image can confirm the guess: an owner with secrets names records itself.

    Args:
        pixels: `[n, c, h, w]`.
        seed: any number.
    """
    key = hashlib.sha256(f"delta/record-id/v1 {seed}".encode()).digest()
    seen: dict[bytes, int] = {}
    ids = []
    for record in pixels.contiguous().numpy():
        digest = hashlib.blake2b(record.tobytes(), digest_size=32, key=key).digest()
        again = seen[digest] = seen.get(digest, -1) + 1
        ids.append(hashlib.blake2b(digest + again.to_bytes(8, "big"), digest_size=16, key=key).hexdigest())
    return tuple(ids)


def stratified(labels: Tensor, count: int, *, seed: int, what: str) -> Tensor:
    """Indices of `count` records, each class in proportion and at least once, in a seeded order.

    Args:
        labels: `[n]` int64.
        count: how many, at most n.
        seed: of the choice within each class, and of the order.
        what: how a message names the data.

    Raises:
        DataError: there are more classes than records asked for.
    """
    counts = torch.bincount(labels)
    present = _present(labels)
    if not len(present) <= count <= len(labels):
        raise DataError(
            f"{what}: {count} records are asked for, of {len(labels)} in {len(present)} classes; ask for "
            f"{len(present)} to {len(labels)}, one a class at least"
        )
    quotas = _quotas(counts[present].tolist(), count)
    chosen = []
    for label, quota in zip(present.tolist(), quotas, strict=True):
        members = (labels == label).nonzero().flatten()
        generator = torch.Generator().manual_seed(hash_seed(seed, label))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:quota]])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(hash_seed(seed, -1)))
    return torch.cat(chosen)[order]


def hash_seed(*parts: int) -> int:
    """A 63-bit seed from several numbers, so that neighbouring ones give unrelated streams."""
    text = " ".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _present(labels: Tensor) -> Tensor:
    """The classes that occur, in order."""
    return torch.bincount(labels).nonzero().flatten()


def _quotas(sizes: Sequence[int], count: int) -> list[int]:
    """Largest remainders: shares of `count` in proportion to `sizes`, each in [1, size]."""
    total = sum(sizes)
    quotas = [max(1, size * count // total) for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(sizes[i] * count % total), i))
    while (missing := count - sum(quotas)) != 0:
        step = 1 if missing > 0 else -1
        order = by_remainder if step > 0 else by_remainder[::-1]
        for i in order:
            if sum(quotas) != count and 1 <= quotas[i] + step <= sizes[i]:
                quotas[i] += step
    return quotas


def _as_unit_interval(pixels: Tensor) -> Tensor:
    return pixels if pixels.dtype == torch.float32 else pixels.to(torch.float32).div_(255.0)
