"""Packed bits: what a release looks like on the wire.

Layout of a record of shape (k, h_m, w_m): its bits in C order (channel, row, column), eight a byte, the first
of each eight in the most significant place; only the record's end is padded, with zeros. 1 × 32 × 32 bits are
128 bytes. It is the order of `numpy.packbits`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from delta.errors import RequestError

__all__ = ["check_padding", "pack_bits", "unpack_bits"]


def pack_bits(bits: Tensor) -> Tensor:
    """Pack `[n, k, h_m, w_m]` bool (or uint8 of zeros and ones) to `[n, B]` uint8, B = ⌈k·h_m·w_m/8⌉."""
    flat = bits.flatten(1).cpu().numpy()
    if flat.shape[1] % 8 == 0:  # one long row is packed several times faster than many short ones
        packed = np.packbits(flat.reshape(-1)).reshape(flat.shape[0], flat.shape[1] // 8)
    else:
        packed = np.packbits(flat, axis=1)
    return torch.from_numpy(packed).to(bits.device)


def unpack_bits(payload: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Unpack `[n, B]` uint8 to `[n, k, h_m, w_m]` uint8 of zeros and ones, on the payload's device.

    Args:
        payload: packed records.
        shape: of a record, `(k, h_m, w_m)`.

    Raises:
        RequestError: the payload is not `[n, B]` uint8 for that shape.
    """
    _check_payload(payload, shape)
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=payload.device)
    bits = (payload[:, :, None] >> shifts) & 1
    return bits.flatten(1)[:, : math.prod(shape)].reshape(-1, *shape)


def check_padding(payload: Tensor, shape: tuple[int, int, int]) -> None:
    """Refuse records whose padding is not zero: a release has one spelling.

    Raises:
        RequestError: the payload is not `[n, B]` uint8 for that shape, or a padding bit is set.
    """
    _check_payload(payload, shape)
    padding = -math.prod(shape) % 8
    if padding and bool((payload[:, -1] & ((1 << padding) - 1)).any()):
        raise RequestError(
            f"the last {padding} bits of a record are padding and must be 0; pack the bits again"
        )


def _check_payload(payload: Tensor, shape: tuple[int, int, int]) -> None:
    size = -(-math.prod(shape) // 8)
    if payload.dtype != torch.uint8 or payload.dim() != 2 or payload.shape[1] != size:
        kind = str(payload.dtype).removeprefix("torch.")
        raise RequestError(
            f"expected packed bits uint8[n, {size}] for {shape}, got {kind}{list(payload.shape)}"
        )
