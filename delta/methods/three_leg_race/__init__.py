"""The method `three-leg-race`: convolutions split into a low-rank private leg and a residual cloud leg."""

from delta.methods.three_leg_race.method import ThreeLegRace

__all__ = ["ThreeLegRace"]
