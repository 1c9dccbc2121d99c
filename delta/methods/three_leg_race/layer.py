"""A convolution on two legs, in place of an `nn.Conv2d`: its forward and its backward ask the cloud."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from delta.methods.three_leg_race.geometry import Geometry
from delta.methods.three_leg_race.legs import CloudLeg
from delta.methods.three_leg_race.lowrank import (
    LowRank,
    convolve_low_rank,
    low_rank_macs,
    low_rank_weight_gradient,
    split_macs,
    split_records,
)
from delta.methods.three_leg_race.outbound import NoiseSource, outbound
from delta.methods.three_leg_race.settings import SplitRule
from delta.release.ids import record_digest

__all__ = ["Sides", "SplitConv", "Trip"]


@dataclass(frozen=True)
class _Halves:
    """A layer's input, split.

    Attributes:
        private: the low-rank part.
        sent: the residual and its noise, `[n, c, h, w]`: what leaves.
    """

    private: LowRank
    sent: Tensor


class Trip:
    """What the layers share while one batch passes them.

    Args:
        leg: the cloud's.
        rule: how inputs are split.
        noise: of the residuals.
        contexts: what each record's noise is bound to.
        fresh: whether the weights go along, since the cloud's copy is not the one in force.

    Attributes:
        ranks: by layer, one a record.
        split_at: the layers whose input was split; the others shared such a split.
        macs: of splits and private legs until now, a record.
    """

    def __init__(
        self,
        leg: CloudLeg,
        rule: SplitRule,
        *,
        noise: NoiseSource,
        contexts: Sequence[bytes],
        fresh: bool = False,
    ) -> None:
        self.leg, self.fresh = leg, fresh
        self.ranks: dict[str, Tensor] = {}
        self.split_at: list[str] = []
        self.macs = 0
        self._rule, self._noise, self._contexts = rule, noise, contexts
        self._first: dict[bytes, int] = {}
        self._known: dict[int, tuple[weakref.ref[Tensor], int, _Halves]] = {}

    @torch.no_grad()
    def halves(self, layer: SplitConv, x: Tensor) -> _Halves:
        """Split a layer's input `[n, c, h, w]`.

        Layers that read the same tensor, as the first convolution of a residual block and its shortcut do, share
        one split and one noise: under two, averaging would take away some of it. So do layers that read the same
        values in another tensor, but for the split, which is then made once more and comes out the same: keeping
        all splits of a trip would take more memory than the model.
        """
        halves = self._shared(x)
        if halves is None:
            rule, noise = self._rule, None
            parts, residual = split_records(x, energy=rule.energy, max_rank=rule.max_rank)
            if rule.noise_ratio > 0:
                noise = self._noise.normal(self._contexts, self._first_reader(layer, x), x[0].numel())
            sent = outbound(residual, noise=noise, noise_ratio=rule.noise_ratio)["x"]
            halves = _Halves(parts, sent)
            self.split_at.append(layer.name)
            self.macs += split_macs(layer.geometry, parts.rank, max_rank=rule.max_rank)
            if not x.is_inference():
                forget = self._known.pop
                gone = weakref.ref(x, lambda _, key=id(x): forget(key, None))  # type: ignore[misc]
                self._known[id(x)] = (gone, x._version, halves)
        self.ranks[layer.name] = halves.private.ranks
        self.macs += low_rank_macs(layer.geometry, halves.private.rank)
        return halves

    def _shared(self, x: Tensor) -> _Halves | None:
        """Of the same tensor, not changed since."""
        known = self._known.get(id(x))
        if known is None or known[0]() is not x or known[1] != x._version:
            return None
        return known[2]

    def _first_reader(self, layer: SplitConv, x: Tensor) -> int:
        """Index of the first layer of this trip that has read these values, in this shape: its noise is taken."""
        return self._first.setdefault(record_digest(x), layer.index)

    def request(self, halves: _Halves, weight: Tensor, gradient: Tensor | None = None) -> dict[str, Tensor]:
        """What leaves for a layer, forward or (with a gradient) back."""
        given = weight if self.fresh or gradient is not None else None
        return outbound(halves.sent, weight=given, gradient=gradient)


class Sides:
    """Where the layers of one model find the trip that is under way; none: they compute alone."""

    def __init__(self) -> None:
        self.trip: Trip | None = None


class SplitConv(nn.Module):
    """A convolution whose input is split while a trip is under way; its state dict is the `nn.Conv2d`'s.

    Args:
        conv: whose parameters it takes over.
        geometry: of it.
        index: of the cloud's operations.
        name: of the module in the model.
        sides: shared by all layers.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, conv: nn.Conv2d, geometry: Geometry, *, index: int, name: str, sides: Sides) -> None:
        super().__init__()
        self.weight = conv.weight  # type: ignore[assignment]
        self.register_parameter("bias", conv.bias)  # type: ignore[arg-type]
        self.geometry, self.index, self.name = geometry, index, name
        self._sides = sides

    def forward(self, x: Tensor) -> Tensor:
        """`[n, c, h, w]` to `[n, o, h', w']`.

        Raises:
            CloudError: a trip is under way and the cloud failed; out of the backward pass likewise.
        """
        trip = self._sides.trip
        if trip is None:
            y = self.geometry.convolve(x, self.weight)
        else:
            halves = trip.halves(self, x)
            if torch.is_grad_enabled():
                y = _TwoLegs.apply(x, self.weight, halves, self, trip)  # type: ignore[no-untyped-call]
            else:
                y = _forward(self.weight, halves, self, trip)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)


def _forward(weight: Tensor, halves: _Halves, layer: SplitConv, trip: Trip) -> Tensor:
    """Both legs at once, and their sum."""
    wait = trip.leg.convolve(layer.index, layer.geometry, trip.request(halves, weight), weight)
    own = convolve_low_rank(layer.geometry, halves.private, weight)
    return own + wait()


class _TwoLegs(torch.autograd.Function):
    """W⋆X = W⋆(UV) + W⋆(X − UV + N): the first on this side, the second in the cloud.

    Back, dX needs no data and comes from the cloud; dW = dY⋆(UV) + dY⋆(X − UV + N) comes from both. To X the
    split is the identity, and the noise a constant.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        halves: _Halves,
        layer: SplitConv,
        trip: Trip,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.halves, ctx.layer, ctx.trip = halves, layer, trip
        return _forward(weight, halves, layer, trip)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (weight,) = ctx.saved_tensors
        halves, layer, trip = ctx.halves, ctx.layer, ctx.trip
        wait = trip.leg.gradients(layer.index, layer.geometry, trip.request(halves, weight, gradient), weight)
        own = low_rank_weight_gradient(layer.geometry, halves.private, gradient, weight)
        dx, dw = wait()
        return dx, own + dw, None, None, None
