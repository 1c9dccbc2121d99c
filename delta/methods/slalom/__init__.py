"""The method `slalom`: linear layers in the cloud on blinded inputs, exact and verified."""

from delta.methods.slalom.private import Slalom
from delta.methods.slalom.reference import reference

__all__ = ["Slalom", "reference"]
