"""The Pareto set: what nothing else is at least as good as in every way, and better in one."""

from __future__ import annotations

from collections.abc import Sequence

from delta.frontier.option import AXES, Axis, Option

__all__ = ["dominated_by", "dominates"]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether costs are nowhere higher, and somewhere lower; equal ones dominate neither way."""
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def dominated_by(options: Sequence[Option], *, axes: Sequence[Axis] = AXES) -> list[Option | None]:
    """For each option one that dominates it, none where it is in the Pareto set.

    Axes are to be read literally: the highest accuracy wins by a thousandth of a percent, and the shortest time by
    a microsecond. Of those that dominate an option, one without a cloud is named first, then the most accurate.
    Options that are equal in all axes are in the set together.

    Args:
        options: points and models without a cloud.
        axes: what counts.
    """
    costs = [[axis.cost(option) for axis in axes] for option in options]
    found: list[Option | None] = []
    for mine in costs:
        better = [option for option, theirs in zip(options, costs, strict=True) if dominates(theirs, mine)]
        better.sort(key=lambda option: (option.method == "delta", AXES[0].cost(option)))
        found.append(better[0] if better else None)
    return found
