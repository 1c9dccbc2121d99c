"""The message map: the frozen linear map from the offloaded stream to what is released.

Three maps are fixed and know no data. A learned one, fitted by `delta.training.message_fit`, may also read squares
of s×s values side by side: a convolution of kernel and stride s, written as its matrix.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from delta.decomposition.decomposer import Decomposer, Decomposition, Projection
from delta.decomposition.products import record_bmm
from delta.errors import ConfigError, InputError

__all__ = [
    "FixedKind",
    "MessageKind",
    "MessageMap",
    "check_stride",
    "message_in_parts",
    "message_matrix",
    "message_of",
]

FixedKind = Literal["channel-mean", "projection", "all-channels"]
"""Maps that depend on no data."""

MessageKind = Literal["channel-mean", "projection", "all-channels", "learned"]


def message_matrix(kind: FixedKind, *, channels: int, k: int | None = None, seed: int = 0) -> Tensor:
    """The matrix of a fixed message map; it depends on no data.

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


def check_stride(stride: int, size: tuple[int, int]) -> None:
    """Refuse a stride that does not divide the offloaded stream's height and width.

    Raises:
        ConfigError: naming the nearest that does.
    """
    height, width = size
    valid = [s for s in range(1, min(height, width) + 1) if height % s == width % s == 0]
    if stride not in valid:
        nearest = min(valid, key=lambda s: (abs(s - stride), s))
        raise ConfigError(
            f"a message map's stride must divide the offloaded stream's {height}×{width}, got {stride}; "
            f"the nearest is {nearest}"
        )


class MessageMap(nn.Module):
    """m = W · stream, over channels; of a learned map with stride s, over the channels of s×s neighbours.

    Args:
        kind: see `message_matrix`; or `learned`.
        channels: of the offloaded stream: c of the residual, r of the principal part.
        k: channels of the message; none for the only value that a fixed kind allows.
        seed: of `projection`.
        stride: s of `learned`.
        matrix: of `learned`, `[k, channels·s·s]`, a kernel `[k, channels, s, s]` with its last three axes as one.
            Without one it holds NaN until a state dict is loaded, so that nothing is ever made from a map that is
            not there.

    Raises:
        ConfigError: k, stride or matrix do not fit.
    """

    matrix: Tensor

    def __init__(
        self,
        kind: MessageKind,
        *,
        channels: int,
        k: int | None = None,
        seed: int = 0,
        stride: int = 1,
        matrix: Tensor | None = None,
    ) -> None:
        super().__init__()
        if kind == "learned":
            made = _learned(matrix, channels=channels, k=k, stride=stride)
        else:
            if stride != 1 or matrix is not None:
                raise ConfigError(f"message map {kind!r} is fixed: it takes no stride and no matrix")
            made = message_matrix(kind, channels=channels, k=k, seed=seed)
        self.kind, self.channels, self.stride = kind, channels, stride
        self.register_buffer("matrix", made)
        self.k = len(made)

    @property
    def weight(self) -> Tensor | None:
        """W `[k, channels·s·s]`, for `Decomposer.decompose_and_map`; none stands for the identity."""
        return None if self.kind == "all-channels" else self.matrix

    def shape_of(self, stream: tuple[int, int, int]) -> tuple[int, int, int]:
        """Shape of a record's message, `(k, h/s, w/s)`, for a stream of shape `(channels, h, w)`.

        Raises:
            ConfigError: the stride does not divide the stream's sizes.
        """
        _, height, width = stream
        check_stride(self.stride, (height, width))
        return self.k, height // self.stride, width // self.stride

    def forward(self, stream: Tensor) -> Tensor:
        """Map `[b, channels, h, w]` to `[b, k, h/s, w/s]`.

        Raises:
            InputError: another number of channels, or sizes that the stride does not divide.
        """
        s = self.stride
        if (
            stream.dim() != 4
            or stream.shape[1] != self.channels
            or stream.shape[2] % s
            or stream.shape[3] % s
        ):
            raise InputError(
                f"the message map takes [n, {self.channels}, h, w]"
                f"{f', h and w multiples of {s}' if s > 1 else ''}; got {list(stream.shape)}"
            )
        if self.kind == "all-channels":
            return stream
        cells = stream if s == 1 else pixel_unshuffle(stream, s)
        mapped = record_bmm(self.matrix.to(cells), cells.flatten(2))
        return mapped.view(cells.shape[0], self.k, *cells.shape[2:])


def _learned(matrix: Tensor | None, *, channels: int, k: int | None, stride: int) -> Tensor:
    """A learned map's matrix, `[k, channels·s·s]` float32."""
    if channels < 1 or stride < 1:
        raise ConfigError(
            f"a message map needs channels and a stride of at least 1, got {channels} and {stride}"
        )
    most = channels * stride**2
    if k is None or not 1 <= k <= most:
        nearest = 1 if k is None else min(max(k, 1), most)
        raise ConfigError(
            f"message map 'learned' needs 1 ≤ k ≤ {most}: {channels} channels, stride {stride}; got {k}; the "
            f"nearest is {nearest}"
        )
    if matrix is None:
        return torch.full((k, most), float("nan"))
    if tuple(matrix.shape) != (k, most):
        raise ConfigError(f"message map 'learned': expected a matrix [{k}, {most}], got {list(matrix.shape)}")
    if not bool(torch.isfinite(matrix).all()):
        raise ConfigError("message map 'learned': its matrix is not finite; fit it again")
    return matrix.detach().float().clone(memory_format=torch.contiguous_format)


def message_of(
    phi: Tensor, *, decomposer: Decomposer, message: MessageMap, offload: Literal["residual", "principal"]
) -> tuple[Decomposition, Tensor]:
    """Decompose an IR `[b, c, h, w]` and map the offloaded stream: the message, `[b, k, h_m, w_m]`, unbounded."""
    if offload == "residual":
        return decomposer.decompose_and_map(phi, message.weight, stride=message.stride)
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
        stride = message.stride
        projection = Projection.joined([decomposer.project(phi, weight, stride=stride) for phi in phis])
        parts, mapped = decomposer.from_projection(projection, weight, stride=stride)
        return decomposer.main_input(parts), mapped
    inputs, messages = [], []
    for phi in phis:
        parts, mapped = message_of(phi, decomposer=decomposer, message=message, offload=offload)
        inputs.append(decomposer.main_input(parts))
        messages.append(mapped)
    return torch.cat(inputs), torch.cat(messages)
