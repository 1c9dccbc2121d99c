"""The one-time pads' arithmetic: what goes out, and what an answer means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from delta.methods.slalom.field import PRIME, column_blocks, half_of, reduce_
from delta.methods.slalom.quantise import QuantLayer

__all__ = ["Pad", "blind", "pad_of", "unblind"]


@dataclass(frozen=True, repr=False)
class Pad:
    """Blinding of n records of one layer, for one use.

    Both are kept as those representatives of their residues that let one conditional addition of p reduce what
    is added to them or subtracted from.

    Attributes:
        blinding: r, int32 `[n, inputs]` in [X − p, X), uniform.
        unblinding: u − (p−1)/2 with u = W·r, int32 `[n, outputs]` in [0, p).
    """

    blinding: Tensor
    unblinding: Tensor


def pad_of(layer: QuantLayer, elements: Tensor, products: Tensor, prime: int = PRIME) -> Pad:
    """A pad.

    Args:
        layer: whose it is.
        elements: secret and uniform, int32 `[n, inputs]` in [0, p): r + p − X.
        products: W·r, integers in float64 of magnitude below 2⁵³ − p, `[n, outputs]`.
        prime: p.
    """
    shifted = reduce_(products - half_of(prime), prime)
    return Pad(elements + (layer.clip - prime), shifted.to(torch.int32))


def blind(layer: QuantLayer, x: Tensor, pad: Pad, prime: int = PRIME) -> Tensor:
    """Inputs of a layer → the bytes that leave: (q(x) + r) mod p, uniform and independent of x.

    The one function of this method that makes outbound bytes (I2). A pad may go in once in its life.

    Args:
        layer: whose input it is.
        x: float32 `[n, inputs]`.
        pad: fresh.
        prime: p.

    Returns:
        int32 `[n, inputs]` in [0, p).
    """
    out = torch.empty(x.shape, dtype=torch.int32)
    for part in column_blocks(*x.shape):
        total = layer.quantise(x[:, part]).to(torch.int32).add_(pad.blinding[:, part])  # in [−p, 2X)
        torch.add(total, (total >> 31).bitwise_and_(prime), out=out[:, part])
    return out


def unblind(layer: QuantLayer, answer: Tensor, pad: Pad, prime: int = PRIME) -> Tensor:
    """A verified answer → the layer's output.

    Args:
        layer: whose answer it is.
        answer: W·(q(x) + r) mod p, int32 `[n, outputs]` in [0, p).
        pad: with which the input was blinded.
        prime: p.

    Returns:
        float32 `[n, outputs]`.
    """
    out = torch.empty(answer.shape, dtype=torch.float32)
    for part in column_blocks(*answer.shape):
        total = answer[:, part] - pad.unblinding[:, part]  # in (−p, p), and W·q(x) + (p−1)/2 modulo p
        total += (total >> 31).bitwise_and_(prime)
        # Integers below 2²⁴ are float32 numbers, so nothing is rounded before the scale.
        accumulators = out[:, part].copy_(total).sub_(half_of(prime))
        layer.dequantise_(accumulators, part)
    return out
