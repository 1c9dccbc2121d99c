"""Serialised SEAL objects, looked at before SEAL does: what one may unpack to is bounded first.

Layout: a header of 16 bytes (magic, its size, version, kind of compression, reserved, size of all), then a
Zstandard stream (RFC 8878). SEAL as TenSEAL 0.3 brings it unpacks such a stream piece by piece while it reads, and
stops where the content does not fit; that is no promise of other versions. The bound here holds whatever SEAL does:
without one, some kilobytes could become gigabytes.
"""

from __future__ import annotations

import struct

__all__ = ["unpacked_bound"]

_HEADER = struct.Struct("<HBBBBHQ")
_MAGIC, _ZSTD = 0xA15E, 2
_FRAME = b"\x28\xb5\x2f\xfd"
_BLOCK = 128 * 1024
_SIZES = (0, 2, 4, 8)  # bytes of the content-size field


def unpacked_bound(data: bytes) -> int:
    """The most bytes that a serialised object can unpack to.

    Raises:
        ValueError: it is no such object.
    """
    if len(data) < _HEADER.size:
        raise ValueError("too short")
    magic, header, _, _, compression, _, size = _HEADER.unpack_from(data)
    if (magic, header, compression, size) != (_MAGIC, _HEADER.size, _ZSTD, len(data)):
        raise ValueError("no header of a compressed SEAL object")
    at, total = _HEADER.size, 0
    while at < len(data):
        at, checksum = _frame(data, at)
        last = False
        while not last:
            if at + 3 > len(data):
                raise ValueError("cut off")
            block = int.from_bytes(data[at : at + 3], "little")
            last, kind, length = bool(block & 1), block >> 1 & 3, block >> 3
            if kind == 3 or length > _BLOCK:
                raise ValueError("no block of a Zstandard stream")
            at += 3 + (1 if kind == 1 else length)
            total += _BLOCK if kind == 2 else length
        at += checksum
        if at > len(data):
            raise ValueError("cut off")
    return total


def _frame(data: bytes, at: int) -> tuple[int, int]:
    """Where the blocks of the frame at `at` begin, and how many bytes follow them."""
    if data[at : at + 4] != _FRAME or at + 5 > len(data):
        raise ValueError("no Zstandard stream")
    descriptor = data[at + 4]
    single, checksum, dictionary = descriptor >> 5 & 1, descriptor >> 2 & 1, descriptor & 3
    if dictionary:
        raise ValueError("a Zstandard stream with a dictionary")
    content = _SIZES[descriptor >> 6] or single
    return at + 5 + (1 - single) + content, 4 * checksum
