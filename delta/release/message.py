"""The message map: the fixed linear map from the offloaded stream's channels to what is released."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from delta.decomposition.decomposer import Decomposer, Decomposition, Projection
from delta.decomposition.products import record_bmm
from delta.errors import ConfigError, InputError

__all__ = ["MessageKind", "MessageMap", "message_in_parts", "message_matrix", "message_of"]

MessageKind = Literal["channel-mean", "projection", "all-channels"]


def message_matrix(kind: MessageKind, *, channels: int, k: int | None = None, seed: int = 0) -> Tensor:
    """The matrix of a message map; it depends on no data.

    Args:
        kind: `channel-mean`, `projection` (orthonormal rows from the seed) or `all-channels` (the identity).
        channels: of the offloaded stream: c of the residual, r of the principal part.
        k: channels of the message; none for the only value that the kind allows.
        seed: of `projection`.

    Returns:
        `[k, channels]` float32.

    Raises:
        ConfigError: k does not fit the kind or the channels.
    """
    if channels < 1:
        raise ConfigError(f"a message map needs at least 1 channel, got {channels}")
    only = {"channel-mean": 1, "all-channels": channels}.get(kind)
    if only is not None and k not in (None, only):
        raise ConfigError(
            f"message map {kind!r} gives {only} of {channels} channels, not {k}; set k = {only}"
        )
    if kind == "channel-mean":
        return torch.full((1, channels), 1.0 / channels)
    if kind == "all-channels":
        return torch.eye(channels)
    if kind != "projection":
        raise ConfigError(f"unknown message map {kind!r}; use channel-mean, projection or all-channels")
    if k is None or not 1 <= k <= channels:
        nearest = 1 if k is None else min(max(k, 1), channels)
        raise ConfigError(
            f"message map 'projection' needs 1 ≤ k ≤ {channels}, got {k}; the nearest is {nearest}"
        )
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(channels, k, generator=generator, dtype=torch.float64)
    q, triangle = torch.linalg.qr(draw)
    # Householder QR leaves the signs of R's diagonal to the library: fix them.
    signs = torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    return torch.mul(q, signs).T.float().contiguous()


class MessageMap(nn.Module):
    """m = W · stream, over channels.

    Args:
        kind: see `message_matrix`.
        channels: of the offloaded stream: c of the residual, r of the principal part.
        k: channels of the message; none for the only value that the kind allows.
        seed: of `projection`.

    Raises:
        ConfigError: k does not fit.
    """

    matrix: Tensor

    def __init__(self, kind: MessageKind, *, channels: int, k: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("matrix", message_matrix(kind, channels=channels, k=k, seed=seed))
        self.k, self.channels = self.matrix.shape

    @property
    def weight(self) -> Tensor | None:
        """W `[k, channels]`, for `Decomposer.decompose_and_map`; none stands for the identity."""
        return None if self.kind == "all-channels" else self.matrix

    def forward(self, stream: Tensor) -> Tensor:
        """Map `[b, channels, h, w]` to `[b, k, h, w]`.

        Raises:
            InputError: another number of channels.
        """
        if stream.dim() != 4 or stream.shape[1] != self.channels:
            raise InputError(f"the message map takes [n, {self.channels}, h, w], got {list(stream.shape)}")
        if self.kind == "all-channels":
            return stream
        mapped = record_bmm(self.matrix.to(stream), stream.flatten(2))
        return mapped.view(stream.shape[0], self.k, *stream.shape[2:])


def message_of(
    phi: Tensor, *, decomposer: Decomposer, message: MessageMap, offload: Literal["residual", "principal"]
) -> tuple[Decomposition, Tensor]:
    """Decompose an IR `[b, c, h, w]` and map the offloaded stream: the message, `[b, k, h_m, w_m]`, unbounded."""
    if offload == "residual":
        return decomposer.decompose_and_map(phi, message.weight)
    parts = decomposer(phi)
    return parts, message(parts.principal)


def message_in_parts(
    phis: Iterable[Tensor],
    *,
    decomposer: Decomposer,
    message: MessageMap,
    offload: Literal["residual", "principal"],
) -> tuple[Tensor, Tensor]:
    """As `message_of`, for an IR that comes a few records at a time and is let go of likewise.

    Args:
        phis: `[b, c, h, w]` each; all records together are the batch.
        decomposer: of φ.
        message: map of the offloaded stream.
        offload: the stream.

    Returns:
        The main model's input `[n, main_channels, h', w']` and the message `[n, k, h_m, w_m]`.
    """
    weight = message.weight
    if offload == "residual" and weight is not None:
        projection = Projection.joined([decomposer.project(phi, weight) for phi in phis])
        parts, mapped = decomposer.from_projection(projection, weight)
        return decomposer.main_input(parts), mapped
    inputs, messages = [], []
    for phi in phis:
        parts, mapped = message_of(phi, decomposer=decomposer, message=message, offload=offload)
        inputs.append(decomposer.main_input(parts))
        messages.append(mapped)
    return torch.cat(inputs), torch.cat(messages)
