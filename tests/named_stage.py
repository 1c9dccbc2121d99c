"""A small named stage 1 for tests of what leaves in training: who is who shows in every name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from delta.release.noise import NoiseKey
from delta.training.config import FitConfig, LabelConfig, NoiseConfig, TrainConfig
from delta.training.private_stage import Labelled, PrivateStage
from tests.trained import settings

KEY = NoiseKey(bytes(range(32)))
RESPONSE = LabelConfig(kind="randomized-response", epsilon=2.0)
MU = 1.67
"""Of one release at ε = 8."""


def part(records: Labelled, count: int, *, what: str, subjects: list[str] | None = None) -> Labelled:
    """The first records, under names that are easy to find."""
    names = tuple(f"{what}-{i:03d}-ward" for i in range(count))
    who = tuple(subjects) if subjects else tuple(f"person-{what}-{i}" for i in range(count))
    return Labelled(records.x[:count], records.y[:count], names, who)


def named_stage(whole: PrivateStage) -> PrivateStage:
    """40 records to fit on and 10 held out, each of a person of its own."""
    return replace(whole, fit=part(whole.fit, 40, what="fit"), held_out=part(whole.held_out, 10, what="held"))


def config_of(**changes: Any) -> TrainConfig:
    """ε = 8, and a cloud model of one epoch."""
    noisy = {"noise": NoiseConfig(epsilon=8.0), "cloud_fit": FitConfig(epochs=1, batch=16)}
    return TrainConfig.of(settings(**{**noisy, **changes}))
