"""How inputs are split: what a bundle's maker decides, and the cloud may read."""

from __future__ import annotations

from pydantic import Field

from delta.config import Strict

__all__ = ["SplitRule"]


class SplitRule(Strict):
    """The energy rule and the noise.

    Attributes:
        energy: the residual's share of a record's sum of squares at which no further term is added.
        max_rank: the most terms.
        noise_ratio: standard deviation of the residual's noise, in units of the residual's root mean square.
    """

    energy: float = Field(default=0.1, ge=0, lt=1)
    max_rank: int = Field(default=32, ge=1)
    noise_ratio: float = Field(default=0.1, ge=0)
