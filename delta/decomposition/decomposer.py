"""Splitting an intermediate representation φ into a principal part p and a residual ρ.

φ̂ = U · D_hᵀ p D_w with p = D_h (Uᵀφ) D_wᵀ, and ρ = φ − φ̂. U has orthonormal columns and D orthonormal rows,
so φ̂ is an orthogonal projection of φ: ⟨φ̂, ρ⟩ = 0 and ‖φ‖² = ‖p‖² + ‖ρ‖².
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from delta.decomposition.basis import Algorithm, check_rank, iteration_start, svd_basis, working_dtype
from delta.decomposition.dct import SpatialBasis
from delta.decomposition.products import record_bmm
from delta.errors import ConfigError, InputError

__all__ = ["Decomposer", "Decomposition", "Projection"]


@dataclass(frozen=True)
class Decomposition:
    """The principal part of a batch, and the basis that it is written in.

    Attributes:
        principal: p, `[b, r, h', w']`.
        basis: U, `[c, r]` (pca) or `[b, c, r]` (svd, one a record); carries no gradient.
    """

    principal: Tensor
    basis: Tensor


@dataclass(frozen=True)
class Projection:
    """What decomposition and message need of an IR: far smaller, so that the IR may go before they are made.

    Attributes:
        products: Uᵀφ and Wφ, `[b, r + k, hw]`; Uᵀφ alone, `[b, r, hw]`, where W has a stride.
        basis: U, `[c, r]` or `[b, c, r]`.
        strided: Wφ of a W with stride s, `[b, k, hw/s²]`; none without.
    """

    products: Tensor
    basis: Tensor
    strided: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[Projection]) -> Projection:
        """Those of several batches under one decomposer, as of one batch."""
        if len(parts) == 1:
            return parts[0]
        shared = parts[0].basis
        basis = shared if shared.dim() == 2 else torch.cat([part.basis for part in parts])
        strided = [part.strided for part in parts if part.strided is not None]
        return cls(
            torch.cat([part.products for part in parts]), basis, torch.cat(strided) if strided else None
        )


def _no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Keep a caller's autocast out: bits must not depend on the training loop's choice of precision."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class Decomposer(nn.Module):
    """The decomposition of one IR shape.

    Results are float32, or float64 for float64 input: a bfloat16 φ is widened first, which loses nothing.
    Gradients flow through the coefficients p, never through U. A record's result does not depend on its
    batch: on a CPU it is the same, bit by bit, where the maps that a record holds fill whole multiples of 64
    bytes (32² cropped to 16² does, 14² cropped to 7² does not), and the same up to rounding elsewhere.

    Args:
        channels: c.
        height: h.
        width: w.
        rank: r, 1 ≤ r ≤ c.
        block: M, block size of the spatial basis.
        keep: m, kept values a block and axis.
        kind: `svd`, a basis a record, or `pca`, one for all.
        algorithm: of `svd`.
        basis: `[c, r]`, of `pca`: see `delta.decomposition.basis.pca_basis`. Without one it holds NaN until a
            state dict is loaded, so that nothing is ever made from a basis that is not there.
        start: `[c, q]`, of approximate `svd`: see `delta.decomposition.basis.iteration_start`, which makes
            the default, with seed 0.

    Raises:
        ConfigError: sizes, basis or start do not fit.
    """

    basis: Tensor | None
    start: Tensor | None

    def __init__(
        self,
        *,
        channels: int,
        height: int,
        width: int,
        rank: int,
        block: int,
        keep: int,
        kind: Literal["svd", "pca"],
        algorithm: Algorithm = "exact",
        basis: Tensor | None = None,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_rank(rank, channels)
        if basis is not None and kind != "pca":
            raise ConfigError("a basis is given, and only pca takes one: svd makes its own for each record")
        if start is not None and (kind, algorithm) != ("svd", "approximate"):
            raise ConfigError("a start is given, and only approximate svd takes one")
        if basis is not None:
            _check_frame(basis, what="pca basis", channels=channels, least=rank, most=rank)
        elif kind == "pca":
            basis = torch.full((channels, rank), float("nan"))
        if start is not None:
            _check_frame(start, what="start of the iteration", channels=channels, least=rank, most=channels)
        elif (kind, algorithm) == ("svd", "approximate"):
            start = iteration_start(channels, rank, seed=0)
        self.ir_shape = (channels, height, width)
        self.rank, self.block, self.keep = rank, block, keep
        self.kind, self.algorithm = kind, algorithm
        self.spatial = SpatialBasis(height=height, width=width, block=block, keep=keep)
        self.register_buffer(
            "basis", None if basis is None else basis.detach().clone(memory_format=torch.contiguous_format)
        )
        self.register_buffer(
            "start", None if start is None else start.detach().clone(memory_format=torch.contiguous_format)
        )

    @property
    def main_channels(self) -> int:
        """Channels of `main_input`: r for pca, c for svd, whose basis differs from record to record."""
        return self.rank if self.kind == "pca" else self.ir_shape[0]

    @property
    def principal_shape(self) -> tuple[int, int, int]:
        """Shape of a record's p: `(r, h', w')`."""
        return (self.rank, *self.spatial.kept)

    @property
    def main_shape(self) -> tuple[int, int, int]:
        """Shape of a record's `main_input`: `(main_channels, h', w')`."""
        return (self.main_channels, *self.spatial.kept)

    def forward(self, phi: Tensor) -> Decomposition:
        """Decompose.

        Args:
            phi: `[b, c, h, w]`.

        Raises:
            InputError: another shape or type, or (svd) not finite.
        """
        with _no_autocast(phi):
            x = self._flat(phi)
            basis = self._basis_of(x)
            return Decomposition(self._principal(record_bmm(basis.mT, x)), basis)

    def decompose_and_map(
        self, phi: Tensor, weight: Tensor | None, *, stride: int = 1
    ) -> tuple[Decomposition, Tensor]:
        """Decompose, and map the residual's channels, without ever holding the residual.

        W ρ = W φ − D_hᵀ ((W U) p) D_w: one matrix product reads φ for Uᵀφ and Wφ at once, and the correction
        is made in k channels instead of c. A W with stride s reads the channels of s×s neighbours, and the
        correction is made in r channels: W ρ = W φ − (W U)(D_hᵀ p D_w), with W U for each place in the square.

        Args:
            phi: `[b, c, h, w]`.
            weight: W, `[k, c·s·s]`; none stands for the identity, and then the residual itself is the answer.
            stride: s, which divides h and w.

        Returns:
            The decomposition and W ρ, `[b, k, h/s, w/s]`.

        Raises:
            InputError: another shape or type, or (svd) not finite.
        """
        if weight is None:
            parts = self(phi)
            return parts, self.residual(phi, parts)
        return self.from_projection(self.project(phi, weight, stride=stride), weight, stride=stride)

    def project(self, phi: Tensor, weight: Tensor, *, stride: int = 1) -> Projection:
        """The first half of `decompose_and_map`, and the only one that reads φ `[b, c, h, w]`.

        Raises:
            InputError: another shape or type, or (svd) not finite.
        """
        with _no_autocast(phi):
            x = self._flat(phi)
            basis = self._basis_of(x)
            if stride == 1:
                return Projection(record_bmm(torch.cat([basis.mT, _rows(weight, basis)], -2), x), basis)
            cells = pixel_unshuffle(_maps(x, self.spatial.size), stride).flatten(2)  # [b, c·s², hw/s²]
            return Projection(record_bmm(basis.mT, x), basis, record_bmm(weight.to(x), cells))

    def from_projection(
        self, projection: Projection, weight: Tensor, *, stride: int = 1
    ) -> tuple[Decomposition, Tensor]:
        """The second half of `decompose_and_map`, under the same W and stride."""
        both, basis = projection.products, projection.basis
        with _no_autocast(both):
            if projection.strided is not None:
                return self._less_strided(self._principal(both), basis, projection.strided, weight, stride)
            rows = _rows(weight, basis)
            # A slice has to be copied before a batched product: while k is small, k maps more are cheaper.
            heads = both if len(weight) <= self.rank else both[:, : self.rank]
            principal = self._principal(heads)[:, : self.rank].contiguous()
            kept = _maps(record_bmm(rows @ basis, principal.flatten(2)), self.spatial.kept)  # [b, k, h', w']
            mapped = _maps(both[:, self.rank :], self.spatial.size) - self.spatial.synthesise(kept)
            return Decomposition(principal, basis), mapped

    def _less_strided(
        self, principal: Tensor, basis: Tensor, strided: Tensor, weight: Tensor, stride: int
    ) -> tuple[Decomposition, Tensor]:
        """Wφ `[b, k, hw/s²]` less Wφ̂: the decomposition and W ρ, `[b, k, h/s, w/s]`."""
        k, places = len(weight), stride**2
        rows = weight.to(basis).view(k, self.ir_shape[0], places).mT.reshape(k * places, -1)  # [k·s², c]
        # Bases of joined batches are stored another way, and a product of another layout rounds another way.
        small = rows @ basis if basis.dim() == 2 else record_bmm(rows, basis.contiguous())
        small = small.view(*small.shape[:-2], k, places, -1).mT.flatten(-2)  # [k, r·s²], or one a record
        cells = pixel_unshuffle(self.spatial.synthesise(principal), stride)  # [b, r·s², h/s, w/s]
        mapped = strided - record_bmm(small, cells.flatten(2))
        return Decomposition(principal, basis), mapped.view(*mapped.shape[:2], *cells.shape[2:])

    def reconstruct(self, parts: Decomposition) -> Tensor:
        """φ̂ = U · D_hᵀ p D_w, `[b, c, h, w]`."""
        with _no_autocast(parts.principal):
            maps = self.spatial.synthesise(parts.principal)
            return _maps(record_bmm(parts.basis, maps.flatten(2)), self.spatial.size)

    def residual(self, phi: Tensor, parts: Decomposition) -> Tensor:
        """ρ = φ − φ̂, `[b, c, h, w]`."""
        return _maps(self._flat(phi), self.spatial.size) - self.reconstruct(parts)

    def main_input(self, parts: Decomposition) -> Tensor:
        """What the main model reads: p for pca, U·p for svd; `[b, main_channels, h', w']`."""
        if self.kind == "pca":
            return parts.principal
        with _no_autocast(parts.principal):
            return _maps(record_bmm(parts.basis, parts.principal.flatten(2)), self.spatial.kept)

    def _flat(self, phi: Tensor) -> Tensor:
        if tuple(phi.shape[1:]) != self.ir_shape or phi.dim() != 4:
            raise InputError(
                f"an intermediate representation has shape [n, {', '.join(map(str, self.ir_shape))}], "
                f"got {list(phi.shape)}; check the split point"
            )
        return phi.flatten(2).to(working_dtype(phi.dtype))

    def _basis_of(self, x: Tensor) -> Tensor:
        if self.basis is not None:
            return self.basis.to(x)
        return svd_basis(_maps(x.detach(), self.spatial.size), self.rank, self.algorithm, self.start)

    def _principal(self, coefficients: Tensor) -> Tensor:
        return self.spatial.analyse(_maps(coefficients, self.spatial.size))


def _rows(weight: Tensor, basis: Tensor) -> Tensor:
    """W `[k, c]` in the type of the basis, once a record where that is one a record."""
    rows = weight.to(basis)
    return rows if basis.dim() == 2 else rows.expand(basis.shape[0], -1, -1)


def _maps(x: Tensor, size: tuple[int, int]) -> Tensor:
    """`[b, n, h·w]` seen as `[b, n, h, w]`."""
    return x.view(*x.shape[:2], *size)


def _check_frame(frame: Tensor, *, what: str, channels: int, least: int, most: int) -> None:
    """Refuse a matrix of the wrong shape, or without orthonormal columns."""
    if frame.dim() != 2 or frame.shape[0] != channels or not least <= frame.shape[1] <= most:
        columns = str(least) if least == most else f"{least} to {most}"
        raise ConfigError(f"{what}: expected shape [{channels}, {columns}], got {list(frame.shape)}")
    wide = frame.detach().to(torch.float64)
    error = (wide.T @ wide - torch.eye(frame.shape[1], dtype=torch.float64, device=frame.device)).abs().max()
    if not float(error) < 1e-3:
        raise ConfigError(f"{what}: its columns are not orthonormal; make it again or check the file")
