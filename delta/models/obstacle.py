"""What stands in the way of running a model under Delta, and how to mend it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Obstacle"]


@dataclass(frozen=True)
class Obstacle:
    """One obstacle.

    Attributes:
        module: qualified name of the module where it lies; empty for the model itself.
        reason: what is wrong.
        mend: what to change.
    """

    module: str
    reason: str
    mend: str

    @property
    def where(self) -> str:
        """The module as a message names it."""
        return repr(self.module) if self.module else "the model itself"

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}; {self.mend}"

    def to_json(self) -> dict[str, str]:
        """The fields by name."""
        return asdict(self)
