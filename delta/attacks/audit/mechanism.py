"""The audited run: from image to packet, through the private half that ships, every record asked for twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from delta.attacks.audit.capture import CapturingTransport, SilentCloud, parse_packets
from delta.attacks.audit.faults import MATES, Fault
from delta.attacks.audit.pair import Pair, release_of
from delta.bundle.store import Bundle
from delta.errors import InternalError
from delta.methods.delta.parts import load_private_parts
from delta.methods.delta.private import DeltaMethod
from delta.methods.schema import CloudHalf
from delta.release.ids import RecordIds
from delta.release.memo import InMemoryMemo
from delta.release.noise import NoiseKey
from delta.release.releaser import Releaser

__all__ = ["AuditedMethod", "Captured", "audited_packets"]

_BATCH = 1000
_CHUNK = (
    15  # most batches under one key and memo; a restarted private half is asked again in every other chunk
)
_DEADLINE_S = 300.0

Progress = Callable[[str, int, int], None]


class AuditedMethod(DeltaMethod):
    """The private half of `delta`, with a fault in its releaser if one is seeded.

    Args:
        bundle: whole.
        key: of the noise.
        altered: the releaser to put in; none leaves everything as it ships.
        memo: whether that one stores what it sent.
        allow: import targets that the bundle may build.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        key: NoiseKey,
        altered: Callable[..., Releaser] | None = None,
        memo: bool = True,
        allow: tuple[str, ...] = (),
    ) -> None:
        super().__init__(bundle, key=key, allow=allow)
        if altered is not None:
            own = {bundle.manifest.architecture.target} if bundle.made_here else set()
            parts = load_private_parts(bundle, allowed=own | set(allow))
            self._releaser = altered(
                release_of(bundle),
                backbone=parts.backbone,
                decomposer=parts.decomposer,
                message=parts.message,
                key=key,
                memo=InMemoryMemo() if memo else None,
            )


@dataclass(frozen=True)
class Captured:
    """The pair's records among the packets of one chunk, which has a noise key of its own, in order of release.

    Attributes:
        first: whether a record's image is the pair's first, `[n]` bool.
        packed: their packets, `[n, B]` uint8.
        bits: of the first ask, `[n, d]` uint8.
        again: of the second ask.
        restarted: whether a restarted private half was asked the second time, with an empty memo.
    """

    first: Tensor
    packed: Tensor
    bits: Tensor
    again: Tensor
    restarted: bool


def audited_packets(
    bundle: Bundle,
    pair: Pair,
    *,
    samples: int,
    seed: int,
    fault: Fault | None = None,
    allow: tuple[str, ...] = (),
    half: CloudHalf | None = None,
    progress: Progress | None = None,
) -> Iterator[Captured]:
    """Send `samples` records of each image, in a random order, and parse what left.

    A quarter of each batch are mates with a message of zero: a record's release may not depend on them. At
    least two noise keys are used in turn, so that shared noise can be told from bits that never vary.

    Args:
        bundle: whole, of the method `delta`.
        pair: the images.
        samples: records of each image.
        seed: of the noise keys and of the order.
        fault: to seed.
        allow: import targets that the bundle may build.
        half: the cloud half; none for one that answers zeros.
        progress: told after every batch.

    Raises:
        InternalError: a batch was not answered.
    """
    release = release_of(bundle)
    cloud = half or SilentCloud(release, classes=len(bundle.manifest.class_names))
    order = torch.arange(2 * samples) % 2
    order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))] == 0
    records = release.input.preprocess(torch.cat([pair.images, pair.mate[None]]))  # [3, c, h, w]
    batches = torch.split(order, min(samples, int(_BATCH * (1 - MATES))))
    a_chunk = min(_CHUNK, -(-len(batches) // 2))
    altered, memo = (None, True) if fault is None else (fault.make(), fault.memo)
    done = 0
    for number, start in enumerate(range(0, len(batches), a_chunk)):
        chunk = batches[start : start + a_chunk]
        key = NoiseKey(hashlib.sha256(f"delta/audit/{seed}/{number}".encode()).digest())
        method = AuditedMethod(bundle, key=key, altered=altered, memo=memo, allow=allow)
        restarted = number % 2 == 1
        asked: list[tuple[Tensor, Tensor]] = []
        for attempt in range(2):
            if attempt and restarted:
                method = AuditedMethod(bundle, key=key, altered=altered, memo=memo, allow=allow)
            with CapturingTransport(cloud, release=release) as transport:
                method.prepare(transport, deadline_s=_DEADLINE_S)
                for index, first in enumerate(chunk, start):
                    _ask(method, records, first, batch=index)
                    done += 1
                    if progress is not None:
                        progress("records", done, 2 * len(batches))
            asked.append(parse_packets(transport.packets, release))
        kept = torch.cat([_is_sample(len(first)) for first in chunk])
        (packed, bits), (_, again) = asked
        yield Captured(torch.cat(chunk), packed[kept], bits[kept], again[kept], restarted)


def _ask(method: DeltaMethod, records: Tensor, first: Tensor, *, batch: int) -> None:
    """One call of the private half: the pair's records `[n]` bool, then their mates."""
    mates = len(_is_sample(len(first))) - len(first)
    which = torch.cat([torch.where(first, 0, 1), torch.full((mates,), 2)])
    ids = RecordIds([f"{batch}-{place}" for place in range(len(which))])
    prediction = method.infer(records[which], ids)
    if not prediction.used_cloud:
        raise InternalError(f"a batch of the audit was not answered: {prediction.reason}; run it again")


def _is_sample(count: int) -> Tensor:
    """Which records of a batch are the pair's: those before the mates."""
    mates = round(count * MATES / (1 - MATES))
    return torch.arange(count + mates) < count
