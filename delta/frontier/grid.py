"""The sweep file: which settings are varied, and the points that come of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, model_validator

from delta.config import Strict, canonical_hash, read_change, read_yaml
from delta.errors import ConfigError
from delta.training.run_config import RunConfig

__all__ = ["AttackPlan", "Point", "SweepConfig", "TimingPlan", "change_text", "chosen_points"]

_OWN = ("attack", "timing", "seeds")
"""Settings of a sweep that `--set` reaches; all others are the runs'."""
_ELSEWHERE = {"seed": "seeds", "device": "--device", "name": "--out"}
"""Settings of a run that a sweep does not vary, and what decides them instead."""


class AttackPlan(Strict):
    """How each point is attacked.

    Attributes:
        epochs: of the decoder.
        width: channels of the decoder's first level.
        classifier_epochs: of the attacker's classifier.
        candidates: images that matching chooses from.
        auxiliary: the attacker's own records, from the training set; none for all.
        victims: test records attacked; none for 1,000, or all that there are.
    """

    epochs: int = Field(default=30, ge=1, le=10_000)
    width: int = Field(default=48, ge=4, le=1024)
    classifier_epochs: int = Field(default=10, ge=1, le=10_000)
    candidates: int = Field(default=1000, ge=2)
    auxiliary: int | None = Field(default=None, ge=2)
    victims: int | None = Field(default=None, ge=1)


class TimingPlan(Strict):
    """How the private side is timed: on the CPU, one point after the other.

    Attributes:
        batch: records a call.
        threads: of the private side.
        rounds: in each of which Delta, private-only and main-only run once, in turn.
        warmup: rounds before, which do not count.
    """

    batch: int = Field(default=32, ge=1, le=65_536)
    threads: int = Field(default=1, ge=1, le=1024)
    rounds: int = Field(default=15, ge=3, le=10_000)
    warmup: int = Field(default=3, ge=0, le=1000)


class SweepConfig(Strict):
    """A sweep: one run's settings, changed in many ways.

    Its points are the product of `grid` and `variants`, and then `points`; equal ones count once.

    Attributes:
        base: YAML file of a run, from this file's folder.
        name: of the frontier.
        grid: values by setting, named as in `delta train --set`; the product of all.
        variants: changes that belong together, such as a message and its channels; each multiplies the grid.
        points: further points, each with all its changes.
        seeds: each point is measured with each.
        attack: how each is attacked.
        timing: how each is timed.
    """

    base: Path
    name: str = Field(default="frontier", pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    variants: list[dict[str, Any]] = Field(default_factory=list)
    points: list[dict[str, Any]] = Field(default_factory=list)
    seeds: tuple[int, ...] = (0,)
    attack: AttackPlan = AttackPlan()
    timing: TimingPlan = TimingPlan()

    @model_validator(mode="after")
    def _there_is_something_to_sweep(self) -> Self:
        empty = [key for key, values in self.grid.items() if not values]
        if empty:
            raise ValueError(f"grid.{empty[0]} has no values; give a list of them, or leave it out")
        if not (self.grid or self.variants or self.points):
            raise ValueError("nothing is varied; give grid, variants or points")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds must be different numbers from 0 on, at least one")
        names = {key for one in (self.grid, *self.variants, *self.points) for key in one}
        for key in sorted(names):
            if not all(key.split(".")):
                raise ValueError(
                    f"{key!r} names no setting; write key or outer.inner, as in delta train --set"
                )
            if key in _ELSEWHERE:
                raise ValueError(f"{key} is not varied here: {_ELSEWHERE[key]} decides it")
        both = sorted(set(self.grid) & {key for one in self.variants for key in one})
        if both:
            raise ValueError(f"{both[0]} is in grid and in variants; leave it in one of the two")
        return self

    @classmethod
    def read(cls, path: Path, *, changes: Sequence[str] = ()) -> tuple[SweepConfig, tuple[str, ...]]:
        """Read a sweep file, with changes of its own settings (`attack.epochs=5`).

        Args:
            path: of the file; `base` is taken from its folder.
            changes: `key=value`, of the sweep or of its runs.

        Returns:
            The sweep, and the changes that are not its own but every run's.

        Raises:
            ConfigError: the file is absent, no YAML or not valid, or a change is malformed.
        """
        value, rest = read_yaml(path), []
        for change in changes:
            (first, *inner), new = read_change(change)
            if first in _ELSEWHERE and not inner:
                raise ConfigError(f"--set {change!r}: a sweep's {first} is decided by {_ELSEWHERE[first]}")
            if first not in _OWN:
                rest.append(change)
            elif not inner:
                value[first] = new
            elif len(inner) == 1 and isinstance(value.setdefault(first, {}), dict):
                value[first] = {**value[first], inner[0]: new}
            else:
                raise ConfigError(f"--set {change!r}: there is no such setting in a sweep")
        if isinstance(value.get("base"), str):
            value["base"] = str(path.parent / value["base"])
        return cls.parse(value, what=f"sweep {path}"), tuple(rest)

    def expanded(self, *, common: Sequence[str] = ()) -> list[Point]:
        """All points, numbered from 1.

        Args:
            common: changes of every run, such as `device=cuda`.

        Raises:
            ConfigError: a point's settings are not valid; the text says which point.
        """
        variants = self.variants or ([{}] if self.grid else [])
        wanted: list[Mapping[str, Any]] = [
            {**variant, **dict(zip(self.grid, values, strict=True))}
            for variant in variants
            for values in itertools.product(*self.grid.values())
        ]
        found: list[Point] = []
        seen: set[str] = set()
        for changes in [*wanted, *self.points]:
            texts = tuple(change_text(key, value) for key, value in changes.items())
            try:
                runs = tuple(
                    RunConfig.read(self.base, changes=(*common, *texts, f"seed={seed}"))
                    for seed in self.seeds
                )
            except ConfigError as error:
                where = ", ".join(texts) or "no change"
                raise ConfigError(f"point {len(found) + 1} ({where}): {error}") from None
            same = canonical_hash([run.model_dump(mode="json") for run in runs])
            if same not in seen:
                seen.add(same)
                found.append(Point(len(found) + 1, (*common, *texts), texts, runs))
        return found


@dataclass(frozen=True)
class Point:
    """One setting of the sweep.

    Attributes:
        number: from 1.
        changes: of the base file, those of every run included, as `delta train --set` takes them.
        own: those that set this point apart.
        runs: one a seed.
    """

    number: int
    changes: tuple[str, ...]
    own: tuple[str, ...]
    runs: tuple[RunConfig, ...]


def change_text(key: str, value: Any) -> str:  # noqa: ANN401
    """A change as `delta train --set` takes it: `noise={epsilon: 8}`."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).strip()
    return f"{key}={text.removesuffix('...').strip()}"


def chosen_points(points: Sequence[Point], only: str | None) -> list[Point]:
    """The points that `--only` names: numbers and ranges with commas between, such as `1,4-6`; none for all.

    Raises:
        ConfigError: it is no such text, or names a point that there is not.
    """
    if only is None:
        return list(points)
    numbers: set[int] = set()
    for part in only.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last) if dash else (first, first)
        if not all(end.isascii() and end.isdigit() for end in ends):
            raise ConfigError(f"--only {only!r} names no points; write numbers such as 3, or 1,4-6")
        low, high = map(int, ends)
        if not 1 <= low <= high <= len(points):
            raise ConfigError(f"--only {only!r}: the sweep has points 1 to {len(points)}")
        numbers.update(range(low, high + 1))
    return [point for point in points if point.number in numbers]
