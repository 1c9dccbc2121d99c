"""Choosing within limits: the cheapest option that keeps them all, or which cannot be kept and by how much."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from delta.errors import ConfigError
from delta.frontier.option import AXES, Axis, Option

__all__ = ["LIMITS", "Choice", "Limit", "Miss", "choose", "limits_of"]

_BY_FIELD = {axis.field: axis for axis in AXES}

LIMITS: dict[str, tuple[Axis, float, float]] = {
    "min_accuracy": (_BY_FIELD["accuracy"], 0.0, 100.0),
    "max_ssim": (_BY_FIELD["ssim"], 0.0, 1.0),
    "max_matching": (_BY_FIELD["matching_top1"], 0.0, 100.0),
    "max_label_leak": (_BY_FIELD["label_leak"], 0.0, 100.0),
    "max_epsilon": (Axis("epsilon", "ε of a release", ""), 0.0, math.inf),
    "max_private_ms": (_BY_FIELD["private_ms"], 0.0, math.inf),
    "max_bytes": (_BY_FIELD["bytes_per_record"], 0.0, math.inf),
}
"""What may be limited, on which axis, and the lowest and highest value that makes sense."""


@dataclass(frozen=True)
class Limit:
    """A limit of the user's.

    Attributes:
        name: among `LIMITS`.
        value: in the axis' unit.
    """

    name: str
    value: float

    @property
    def axis(self) -> Axis:
        """What it limits."""
        return LIMITS[self.name][0]

    @property
    def option_text(self) -> str:
        """As the command has it: `--max-ssim 0.35`."""
        return f"--{self.name.replace('_', '-')} {self.value:g}"

    def kept(self, option: Option) -> bool:
        """Whether an option keeps it; what was not measured does not."""
        cost = self.axis.cost(option)
        return cost <= (-self.value if self.axis.higher else self.value)


@dataclass(frozen=True)
class Miss:
    """How far one limit is from what can be had when all others are kept.

    Attributes:
        limit: the limit.
        best: the option that comes nearest; none where no option keeps the others.
        value: the best value reachable; none where there is no such option, or it was not measured, or is
            infinite.
        gap: by how much it misses; 0 where it is kept.
    """

    limit: Limit
    best: Option | None
    value: float | None
    gap: float | None


@dataclass(frozen=True)
class Choice:
    """What came of the limits.

    Attributes:
        limits: of the user.
        chosen: the cheapest option that keeps all; none where there is none.
        point: the cheapest point with the cloud that does.
        rival: the cheapest model without a cloud that does.
        misses: where nothing is chosen, of each limit.
        conflicts: where nothing is chosen, the smallest sets of limits that no option keeps together.
    """

    limits: tuple[Limit, ...]
    chosen: Option | None
    point: Option | None
    rival: Option | None
    misses: tuple[Miss, ...] = field(default=())
    conflicts: tuple[tuple[Limit, ...], ...] = field(default=())


def limits_of(values: Mapping[str, float | None]) -> tuple[Limit, ...]:
    """Limits by name, those of none left out.

    Raises:
        ConfigError: one is out of range, or there is none.
    """
    found = []
    for name, value in values.items():
        if value is None:
            continue
        axis, low, high = LIMITS[name]
        if not low <= value <= high:  # refuses a NaN, too
            option = f"--{name.replace('_', '-')}"
            upper = f" to {high:g}" if math.isfinite(high) else " on"
            raise ConfigError(f"{option} {value:g} is no {axis.label}: give a number from {low:g}{upper}")
        found.append(Limit(name, value))
    if not found:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in LIMITS)
        raise ConfigError(f"no limit is given; give one or more of {names}")
    return tuple(found)


def choose(options: Sequence[Option], limits: Sequence[Limit]) -> Choice:
    """Choose by private time, of equal ones by accuracy; a model without a cloud before an equal point.

    Args:
        options: points and models without a cloud.
        limits: at least one.

    Raises:
        ConfigError: there is nothing to choose from.
    """
    if not options:
        raise ConfigError("the frontier holds no measured point; run delta frontier again")
    kept = sorted(_keeping(options, limits), key=_price)
    point = next((one for one in kept if one.method == "delta"), None)
    rival = next((one for one in kept if one.method != "delta"), None)
    if kept:
        return Choice(tuple(limits), kept[0], point, rival)
    misses = tuple(_miss(options, limits, limit) for limit in limits)
    return Choice(tuple(limits), None, None, None, misses, _conflicts(options, limits))


def _price(option: Option) -> tuple[float, float, bool]:
    time, accuracy = _BY_FIELD["private_ms"], _BY_FIELD["accuracy"]
    return time.cost(option), accuracy.cost(option), option.method == "delta"


def _keeping(options: Sequence[Option], limits: Sequence[Limit]) -> list[Option]:
    return [option for option in options if all(limit.kept(option) for limit in limits)]


def _miss(options: Sequence[Option], limits: Sequence[Limit], limit: Limit) -> Miss:
    others = [other for other in limits if other is not limit]
    axis = limit.axis
    best = min(_keeping(options, others), key=lambda one: (axis.cost(one), _price(one)), default=None)
    if best is None:
        return Miss(limit, None, None, None)
    cost = axis.cost(best)
    if math.isinf(cost):
        return Miss(limit, best, None, None)
    value = -cost if axis.higher else cost
    return Miss(limit, best, value, max(0.0, (limit.value - value) if axis.higher else (value - limit.value)))


def _conflicts(options: Sequence[Option], limits: Sequence[Limit]) -> tuple[tuple[Limit, ...], ...]:
    for size in range(1, len(limits) + 1):
        found = tuple(some for some in itertools.combinations(limits, size) if not _keeping(options, some))
        if found:
            return found
    return ()
