"""The demonstration's settings: three releases over one private stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from delta.training.config import FitConfig, MainConfig, NoiseConfig, TrainConfig

__all__ = ["EPSILON", "DemoSettings"]

EPSILON = 8.0

Offload = Literal["residual", "principal"]


@dataclass(frozen=True)
class DemoSettings:
    """What `delta demo` runs.

    Attributes:
        offload: stream of the main row.
        seed: of every random choice but the noise keys.
        batch: records a request.
        device: of training.
        attack_seconds: for each row's decoder.
        gallery: records shown on the page.
        show_records: whether the page may show records at all.
    """

    offload: Offload = "residual"
    seed: int = 0
    batch: int = 32
    device: str = "cpu"
    attack_seconds: float = 7.0
    gallery: int = 8
    show_records: bool = True

    def base(self, channels: int) -> TrainConfig:
        """The main row: `noise: none`, on a fixed stem, so that the row with noise has an unconditional claim.

        Images of several channels are harder: they get longer fits and more private MACs.
        """
        colour = channels > 1
        return TrainConfig.of(
            {
                "noise": "none",
                "seed": self.seed,
                "name": "demo",
                "rank": 4,
                "offload": self.offload,
                "backbone": "fixed",
                "whole": FitConfig(epochs=8 if colour else 4),
                "main": MainConfig(max_macs=600_000 if colour else 90_000),
                "main_fit": FitConfig(epochs=12, learning_rate=1e-2),
                "cloud_fit": FitConfig(epochs=8 if colour else 5),
                "augment": "shift+flip" if colour else "none",
                "device": self.device,
            }
        )

    def rows(self, channels: int) -> dict[str, TrainConfig]:
        """Every row by name, the main one first."""
        base = self.base(channels)
        other: Offload = "principal" if self.offload == "residual" else "residual"
        return {
            "main": base,
            "epsilon-8": base.model_copy(
                update={"noise": NoiseConfig(epsilon=EPSILON), "name": "demo-epsilon-8"}
            ),
            other: base.model_copy(update={"offload": other, "name": f"demo-{other}"}),
        }
