"""An audit of one training run: many canaries, each one of two images by a secret coin, and guesses at the coins.

Steinke, Nasr & Jagielski 2023 (arXiv 2305.08846), their theorem for (ε, δ): if a mechanism on m fair coins is
(ε, δ)-DP in each of them, r guesses are right v times or more with probability at most

    β + 2mδ · max_{1 ≤ i ≤ v} P[v − i ≤ W < v] / i,   β = P[W ≥ v],   W ~ Bin(r, e^ε/(1 + e^ε)).

Coins that choose between two images make it a statement on the replace-one relation.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delta.attacks.audit.binomial import tail_above
from delta.errors import ConfigError

__all__ = ["OneRunBound", "epsilon_lower_bound", "guess_coins", "one_run_p_value"]

_HIGHEST = 30.0  # of the search: beyond it e^ε/(1 + e^ε) is 1 in floating point


@dataclass(frozen=True)
class OneRunBound:
    """What the guesses showed.

    Attributes:
        epsilon: the lower bound, at `delta`.
        delta: δ.
        canaries: m, of which `guesses` were guessed at and `correct` rightly.
        confidence: of the bound.
    """

    epsilon: float
    delta: float
    canaries: int
    guesses: int
    correct: int
    confidence: float

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def one_run_p_value(*, canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The largest probability with which an (ε, δ)-DP mechanism allows so many right guesses or more.

    Args:
        canaries: m.
        guesses: r, at most m; the others were abstained from.
        correct: v, at most r.
        epsilon: ε, at least 0.
        delta: δ, in [0, 1).

    Raises:
        ConfigError: counts that contradict each other.
    """
    if not 0 <= correct <= guesses <= canaries or canaries < 1:
        raise ConfigError(f"{correct} right of {guesses} guesses at {canaries} canaries cannot be")
    if guesses == 0:
        return 1.0
    q = 1.0 / (1.0 + math.exp(-epsilon))
    beta = tail_above(correct, guesses, q)
    if delta == 0.0 or correct == 0:
        return beta
    below = np.cumsum(_pmf(np.arange(correct - 1, -1, -1), guesses, q))  # P[v − i ≤ W < v], i = 1 … v
    worst = float((below / np.arange(1, correct + 1)).max())
    return min(1.0, beta + 2.0 * canaries * delta * worst)


def epsilon_lower_bound(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float
) -> OneRunBound:
    """The largest ε that so many right guesses reject; 0 where they reject none."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, got {confidence:g}; 0.95 is usual")
    low, high = 0.0, _HIGHEST

    def rejected(epsilon: float) -> bool:
        p = one_run_p_value(canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
        return p < 1 - confidence

    if rejected(low):
        while high - low > 1e-6:
            middle = 0.5 * (low + high)
            low, high = (middle, high) if rejected(middle) else (low, middle)
    return OneRunBound(low, delta, canaries, guesses, correct, confidence)


def guess_coins(scores: NDArray[np.float64], coins: NDArray[np.bool_], *, guesses: int) -> tuple[int, int]:
    """Guess the coins of the largest |score|, by its sign; abstain from the others.

    Args:
        scores: of each canary, `[m]`: above 0 speaks for the first image.
        coins: the truth: whether it was the first, `[m]`.
        guesses: how many, fixed before anything was seen.

    Returns:
        Guesses made, and how many were right.
    """
    chosen = np.argsort(-np.abs(scores), kind="stable")[:guesses]
    return len(chosen), int(((scores[chosen] > 0) == coins[chosen]).sum())


def _pmf(k: NDArray[np.int64], n: int, p: float) -> NDArray[np.float64]:
    """P[Bin(n, p) = k], 0 < p < 1."""
    steps = np.array([math.lgamma(i + 1.0) for i in range(n + 1)])
    log = steps[n] - steps[k] - steps[n - k] + k * math.log(p) + (n - k) * math.log1p(-p)
    return np.asarray(np.exp(log))
