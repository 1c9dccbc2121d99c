"""A model whose convolutions stand on two legs, and a look at what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from delta.errors import ModelError
from delta.methods.layers import linear_layers, with_layers
from delta.methods.three_leg_race.geometry import Geometry
from delta.methods.three_leg_race.layer import Sides, SplitConv, Trip
from delta.methods.three_leg_race.legs import LocalLeg
from delta.methods.three_leg_race.lowrank import low_rank_macs, split_macs
from delta.methods.three_leg_race.outbound import NoiseSource
from delta.methods.three_leg_race.settings import SplitRule
from delta.models.macs import count_macs
from delta.models.memory import peak_memory

__all__ = ["Look", "SplitNetwork"]

_CHUNK, _CALIBRATION = 32, 128


@dataclass(frozen=True)
class Look:
    """What a rule makes of a network.

    Attributes:
        ranks: of each convolution, the largest among the records looked at.
        macs: of all splits and private legs at those ranks, a record.
        peak_bytes: of live private tensors, for one record.
    """

    ranks: dict[str, int]
    macs: int
    peak_bytes: int


class SplitNetwork:
    """A copy of a model with a `SplitConv` for every `nn.Conv2d`; their parameters are the model's own.

    Args:
        model: in eval mode.
        record: `[1, …]`.

    Raises:
        ModelError: no convolution, or one that cannot be split; the text names it.
    """

    def __init__(self, model: nn.Module, record: Tensor) -> None:
        self._sides = Sides()
        self._record = record
        self.layers: list[SplitConv] = []
        for layer in linear_layers(model, record):
            if isinstance(layer.module, nn.Conv2d):
                index = len(self.layers)
                self.layers.append(
                    SplitConv(
                        layer.module, Geometry.of(layer), index=index, name=layer.name, sides=self._sides
                    )
                )
        if not self.layers:
            raise ModelError("the model has no nn.Conv2d layer; method 'three-leg-race' splits nothing else")
        self.other_macs = count_macs(model, record) - sum(layer.geometry.macs for layer in self.layers)
        self.module = with_layers(model, {layer.name: layer for layer in self.layers}).eval()

    def described(self) -> list[dict[str, Any]]:
        """The geometry of each convolution, in the order of the cloud's operations, as plain JSON."""
        return [layer.geometry.model_dump(mode="json") for layer in self.layers]

    @contextmanager
    def passing(self, trip: Trip | None) -> Iterator[None]:
        """While inside, the convolutions split their inputs as the trip says; none: they compute alone."""
        self._sides.trip = trip
        try:
            yield
        finally:
            self._sides.trip = None

    def run(self, x: Tensor, trip: Trip | None) -> Tensor:
        """Records to logits.

        Raises:
            CloudError: the cloud of the trip failed.
        """
        with self.passing(trip):
            logits: Tensor = self.module(x)
        return logits

    @torch.no_grad()
    def measured(self, rule: SplitRule, records: Tensor | None) -> Look:
        """Ranks of some records, and what they cost.

        Args:
            rule: how inputs are split.
            records: `[n, …]`, of which the first 128 are looked at; none takes the highest ranks there can be.
        """
        if records is None or not len(records):
            ranks = {layer.name: min(rule.max_rank, layer.geometry.full_rank) for layer in self.layers}
            first = torch.randn(self._record.shape, generator=torch.Generator().manual_seed(0))
        else:
            ranks = {layer.name: 1 for layer in self.layers}
            first = records[:1]
            for part in torch.split(records[:_CALIBRATION], _CHUNK):
                trip = _local(rule, len(part))
                self.run(part, trip)
                ranks = {name: max(rank, int(trip.ranks[name].max())) for name, rank in ranks.items()}
        # Layers that share an input share its split: each counts here once, as when the layers run.
        macs = sum(low_rank_macs(layer.geometry, ranks[layer.name]) for layer in self.layers)
        trip = _local(rule, 1)
        peak = peak_memory(lambda x: self.run(x, trip), first)
        macs += sum(
            split_macs(layer.geometry, ranks[layer.name], max_rank=rule.max_rank)
            for layer in self.layers
            if layer.name in trip.split_at
        )
        return Look(ranks, macs, peak)


def _local(rule: SplitRule, records: int) -> Trip:
    """Without a cloud, and without the noise's secret: nothing leaves."""
    return Trip(LocalLeg(), rule, noise=NoiseSource(0), contexts=[b"look"] * records)
