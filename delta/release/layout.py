"""The layout of a release: kept, or destroyed by cutting the bits into patches and sending them in random order.

A shuffled record leaves as a bag of square patches: in an order of its own, each mirrored at random. Order and
mirrors are a function of the noise key and of the release, under a domain of their own, so that a retry, a restart
and a rollback send the same bytes. It is obfuscation: after noise it is post-processing by randomness that knows no
record, and the claim stays what it was; without noise there is none.

Bytes of a shuffled record: patch after patch as sent, each in C order (k, P, P), packed as `delta.release.packing`
says; they are as many as those of a kept one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from delta.errors import InputError
from delta.release.packing import pack_bits, unpack_bits

__all__ = [
    "Arrangement",
    "arranged",
    "arrangement_of",
    "cut",
    "join",
    "mirrored",
    "pack_patches",
    "random_arrangement",
    "restored",
    "unpack_patches",
    "words_for",
]

_SPARE = 8
"""Words beside those that a permutation takes. One is rejected with a chance below 2⁻⁵³: nobody sees two."""


@dataclass(frozen=True)
class Arrangement:
    """How the patches of each record are sent.

    Attributes:
        order: place in the map, row by row, of each patch sent, `[n, patches]` int64.
        mirrors: whether it is mirrored left to right, and upside down, `[n, patches, 2]` bool.
    """

    order: Tensor
    mirrors: Tensor

    def to(self, device: torch.device) -> Arrangement:
        """On a device."""
        return Arrangement(self.order.to(device), self.mirrors.to(device))


def cut(maps: Tensor, patch: int) -> Tensor:
    """Cut `[n, k, h, w]` into square patches, row by row: `[n, patches, k, patch, patch]`.

    Raises:
        InputError: the patch does not divide height and width.
    """
    n, k, height, width = maps.shape
    if patch < 1 or height % patch or width % patch:
        raise InputError(
            f"a patch of {patch} does not divide {height}×{width}; take a common divisor of the two"
        )
    grid = maps.reshape(n, k, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, k, patch, patch)


def join(patches: Tensor, size: tuple[int, int]) -> Tensor:
    """Lay patches `[n, patches, k, patch, patch]` out row by row, whatever their order: `[n, k, *size]`."""
    n, _, k, patch, _ = patches.shape
    height, width = size
    grid = patches.reshape(n, height // patch, width // patch, k, patch, patch)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(n, k, height, width)


def mirrored(patches: Tensor, mirrors: Tensor) -> Tensor:
    """Mirror patches `[…, k, patch, patch]` where `mirrors` `[…, 2]` says so; twice is not at all."""
    across, down = mirrors[..., 0, None, None, None], mirrors[..., 1, None, None, None]
    turned = torch.where(across, patches.flip(-1), patches)
    return torch.where(down, turned.flip(-2), turned)


def arranged(patches: Tensor, arrangement: Arrangement) -> Tensor:
    """Patches `[n, patches, k, patch, patch]` in the order of sending, mirrored."""
    rows = torch.arange(len(patches), device=patches.device)[:, None]
    return mirrored(patches[rows, arrangement.order], arrangement.mirrors)


def restored(patches: Tensor, arrangement: Arrangement) -> Tensor:
    """The inverse of `arranged`: patches back in their places."""
    rows = torch.arange(len(patches), device=patches.device)[:, None]
    back = torch.empty_like(patches)
    back[rows, arrangement.order] = mirrored(patches, arrangement.mirrors)
    return back


def words_for(patches: int) -> int:
    """Random words that an arrangement of so many patches is made from."""
    return _mirror_words(patches) + patches - 1 + _SPARE


def arrangement_of(words: Tensor, *, patches: int, mirror: bool) -> Arrangement:
    """Uniform permutations and mirrors from uniform words.

    The first ⌈2·patches/64⌉ words give the mirrors, two bits a patch from the least significant on. The others shuffle
    as Fisher and Yates do, from the last place to the first (Durstenfeld 1964): a word that would favour some places
    is rejected, and the next one is taken, so that all permutations have one chance exactly.

    Args:
        words: independent and uniform, `[n, words_for(patches)]` uint64.
        patches: of a record.
        mirror: whether patches are mirrored at all.

    Raises:
        InputError: there are too few words.
    """
    head, drawn = _mirror_words(patches), words.numpy()
    if drawn.shape[1] < words_for(patches):
        raise InputError(f"{patches} patches need {words_for(patches)} random words, got {drawn.shape[1]}")
    n = len(drawn)
    rows, order = np.arange(n), np.tile(np.arange(patches), (n, 1))
    at = np.full(n, head)  # the next word of each record
    for last in range(patches - 1, 0, -1):
        fair = np.uint64(2**64 - 1 - 2**64 % (last + 1))
        while (unfair := drawn[rows, at] > fair).any():
            at[unfair] += 1
            if int(at.max()) >= drawn.shape[1]:
                raise InputError("the random words of a layout are used up: these are no uniform ones")
        chosen = (drawn[rows, at] % np.uint64(last + 1)).astype(np.int64)
        order[rows, last], order[rows, chosen] = order[rows, chosen], order[rows, last].copy()
        at += 1
    mirrors = np.zeros((n, patches, 2), dtype=bool)
    if mirror:
        octets = np.ascontiguousarray(drawn[:, :head]).astype("<u8").view(np.uint8)
        flat = np.unpackbits(octets, axis=1, bitorder="little", count=2 * patches)
        mirrors = flat.reshape(n, patches, 2).astype(bool)
    return Arrangement(torch.from_numpy(order), torch.from_numpy(mirrors))


def random_arrangement(
    records: int, *, patches: int, mirror: bool, generator: torch.Generator, device: torch.device
) -> Arrangement:
    """An arrangement from anybody's random numbers: what an attacker simulates, and a cloud augments with.

    Args:
        records: how many.
        patches: of each.
        mirror: whether patches are mirrored.
        generator: of random numbers, on its own device.
        device: of the arrangement.
    """
    keys = torch.rand(records, patches, generator=generator, device=generator.device)
    turns = torch.rand(records, patches, 2, generator=generator, device=generator.device)
    return Arrangement(keys.argsort(dim=1), (turns < 0.5) & mirror).to(device)


def pack_patches(bits: Tensor, *, patch: int) -> Tensor:
    """Pack `[n, k, h_m, w_m]` bool (or uint8 of zeros and ones), laid out as `unpack_patches` does: `[n, B]` uint8."""
    return pack_bits(cut(bits, patch))


def unpack_patches(payload: Tensor, shape: tuple[int, int, int], *, patch: int) -> Tensor:
    """Unpack shuffled records `[n, B]` uint8 to `[n, *shape]` uint8, patches row by row in the order sent.

    Raises:
        RequestError: the payload is not `[n, B]` uint8 for that shape.
    """
    k, height, width = shape
    bits = unpack_bits(payload, shape).view(len(payload), -1, k, patch, patch)
    return join(bits, (height, width))


def _mirror_words(patches: int) -> int:
    return -(-2 * patches // 64)
