"""Figures of a run as they were read: what is absent, of another type or not finite is nothing, never an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Figures"]


@dataclass(frozen=True)
class Figures:
    """A JSON object.

    A path names a value inside it with dots: `leakage.ssim`.

    Attributes:
        values: as read.
    """

    values: Mapping[str, Any] = field(default_factory=dict)

    def get(self, path: str) -> Any:  # noqa: ANN401
        """The value there, or none."""
        found: Any = self.values
        for key in path.split("."):
            if not isinstance(found, Mapping) or key not in found:
                return None
            found = found[key]
        return found

    def number(self, path: str) -> float | None:
        """A finite number, or none."""
        found = self.get(path)
        if isinstance(found, bool) or not isinstance(found, int | float):
            return None
        return float(found) if math.isfinite(found) else None

    def text(self, path: str) -> str | None:
        """A string, or none."""
        found = self.get(path)
        return found if isinstance(found, str) and found else None

    def flag(self, path: str) -> bool | None:
        """True, false, or none."""
        found = self.get(path)
        return found if isinstance(found, bool) else None

    def part(self, path: str) -> Figures:
        """The object there; an empty one where there is none."""
        found = self.get(path)
        return Figures(found if isinstance(found, Mapping) else {})

    def parts(self, path: str) -> list[Figures]:
        """The objects of a list there; those of an object, in its order."""
        found = self.get(path)
        if isinstance(found, Mapping):
            found = list(found.values())
        return [Figures(one) for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []

    def named(self, path: str) -> list[tuple[str, Figures]]:
        """The objects of an object there, by name."""
        found = self.get(path)
        if not isinstance(found, Mapping):
            return []
        return [(str(name), Figures(one)) for name, one in found.items() if isinstance(one, Mapping)]

    def range(self, path: str) -> tuple[float | None, float | None]:
        """A pair of finite numbers, as intervals are written; none for an end that is absent."""
        found = self.get(path)
        if not isinstance(found, list | tuple) or len(found) != 2:
            return None, None
        ends = Figures({"low": found[0], "high": found[1]})
        return ends.number("low"), ends.number("high")
