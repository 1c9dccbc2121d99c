"""A subject's budget as people write it: in a configuration, or as one word of a command."""

from __future__ import annotations

import math
import re
from typing import Literal, Self

from pydantic import Field, model_validator

from delta.config import Strict
from delta.errors import PrivacyParameterError
from delta.privacy.gaussian import mu_of
from delta.privacy.ledger import UNLIMITED, Budget, checked_budget

__all__ = ["BudgetConfig", "budget_of", "budget_text", "parse_budget"]

DELTA = 1e-5
"""The δ of a budget that names only its ε."""

_PART = re.compile(r"\s*(mu|epsilon|delta)\s*=\s*(\S+)\s*")


class BudgetConfig(Strict):
    """What all releases and labels of one subject may compose to: a μ, or an (ε, δ).

    Attributes:
        mu: the largest μ.
        epsilon: the largest ε, at `delta`.
        delta: of `epsilon`, and only of that; none takes 1e-5.
    """

    mu: float | None = Field(default=None, gt=0)
    epsilon: float | None = Field(default=None, gt=0)
    delta: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.mu is None) == (self.epsilon is None):
            raise ValueError("a budget is either mu, or epsilon with its delta; give exactly one of the two")
        if self.mu is not None and self.delta is not None:
            raise ValueError("delta belongs to epsilon, and a budget given as mu has none")
        return self


def budget_of(config: Literal["unlimited"] | BudgetConfig) -> Budget:
    """The budget that a configuration names: `unlimited`, or the largest μ."""
    if isinstance(config, str):
        return checked_budget(config)
    if config.epsilon is not None:
        return mu_of(epsilon=config.epsilon, delta=DELTA if config.delta is None else config.delta)
    return checked_budget(config.mu if config.mu is not None else math.nan)


def parse_budget(text: str) -> Budget:
    """The budget that a word names: `unlimited`, `mu=2.5`, `epsilon=8` or `epsilon=8,delta=1e-5`.

    Raises:
        PrivacyParameterError: it is none of these, or a number is out of range.
    """
    if text.strip() == UNLIMITED:
        return UNLIMITED
    found = [_PART.fullmatch(part) for part in text.split(",")]
    parts = {match[1]: match[2] for match in found if match is not None}
    if None not in found and len(parts) == len(found):
        try:
            numbers = {name: float(number) for name, number in parts.items()}
        except ValueError:
            numbers = {}
        if set(numbers) == {"mu"}:
            return checked_budget(numbers["mu"])
        if set(numbers) in ({"epsilon"}, {"epsilon", "delta"}):
            return mu_of(epsilon=numbers["epsilon"], delta=numbers.get("delta", DELTA))
    raise PrivacyParameterError(
        f"a budget is 'unlimited', 'mu=2.5', 'epsilon=8' or 'epsilon=8,delta=1e-5', got {text[:60]!r}"
    )


def budget_text(budget: Budget) -> str:
    """The word that `parse_budget` reads back exactly."""
    return UNLIMITED if isinstance(budget, str) else f"mu={budget!r}"
