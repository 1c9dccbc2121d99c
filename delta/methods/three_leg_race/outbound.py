"""What leaves: the residual under Gaussian noise and, in training, weights and a gradient beside it.

The noise of a record is drawn from a key of its own, so that a record asked about twice is sent under the same
noise, which averaging does not take away. It is no differentially private mechanism: the residual is not
clipped, and the noise's scale is the residual's own.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections.abc import Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

from delta.methods.three_leg_race.lowrank import squares
from delta.release.ids import length_prefixed

__all__ = ["NoiseSource", "outbound"]

_DOMAIN = "delta/three-leg-race/v1"


class NoiseSource:
    """Gaussian noise, a function of a secret and of what it is for.

    Args:
        seed: of the secret, for repeatable runs: whoever knows it takes the noise away. None draws a secret.
    """

    def __init__(self, seed: int | None = None) -> None:
        text = secrets.token_bytes(32) if seed is None else str(seed).encode()
        self._key = hashlib.sha256(length_prefixed(_DOMAIN, text)).digest()

    def normal(self, contexts: Sequence[bytes], layer: int, count: int) -> Tensor:
        """Standard normal values `[len(contexts), count]` float32, a row for each context.

        By Box and Muller from 31-bit uniform integers: no value lies beyond 6.6.

        Args:
            contexts: one a record.
            layer: other layers have other noise.
            count: of values a record.
        """
        half = -(-count // 2)
        bits = np.empty((len(contexts), 2, half), dtype=np.int32)
        zeros = bytes(8 * half)
        for row, context in zip(bits, contexts, strict=True):
            what = length_prefixed(context, layer.to_bytes(4, "big"))
            key = hmac.digest(self._key, what, hashlib.sha256)
            # The key serves this row alone, so the counter may start at zero.
            stream = Cipher(AES(key), CTR(bytes(16))).encryptor().update(zeros)
            row[:] = np.frombuffer(stream, dtype="<i4").reshape(2, half)
        uniform = torch.from_numpy(bits).bitwise_and_(0x7FFFFFFF).float().mul_(2.0**-31).add_(2.0**-32)
        radius = uniform[:, 0].log().mul_(-2).sqrt_()
        angle = uniform[:, 1].mul_(2 * math.pi)
        return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count]


def outbound(
    residual: Tensor,
    *,
    noise: Tensor | None = None,
    noise_ratio: float = 0.0,
    weight: Tensor | None = None,
    gradient: Tensor | None = None,
) -> dict[str, Tensor]:
    """All that a request holds: the one function that makes outbound bytes of private tensors (I2).

    A record's noise has `noise_ratio` times the root mean square of its residual as standard deviation.

    Args:
        residual: `[n, c, h, w]`; in the backward pass what the forward pass has sent, noise and all.
        noise: standard normal, `[n, c·h·w]`; none adds nothing.
        noise_ratio: how much of it.
        weight: of the layer, where the cloud's copy is not the one in force.
        gradient: of the layer's answer, `[n, o, h', w']`; training gives invariant I3 up.

    Returns:
        Tensors by name, on the CPU and without any graph.
    """
    x = residual
    if noise is not None and noise_ratio > 0:
        mean = squares(residual, (1, 2, 3)) / residual[0].numel()
        sigma = (noise_ratio * mean.sqrt()).to(residual.dtype)
        x = residual + sigma.view(-1, 1, 1, 1) * noise.to(residual.device).view_as(residual)
    request = {"x": x}
    if weight is not None:
        request["w"] = weight
    if gradient is not None:
        request["dy"] = gradient
    return {name: tensor.detach().cpu().contiguous() for name, tensor in request.items()}
