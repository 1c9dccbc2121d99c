"""Candidate matching: which of N images was it? The attacker knows the backbone and everything but the noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from delta.attacks.intervals import clopper_pearson
from delta.errors import InputError

__all__ = [
    "FLIP_RATE",
    "MatchResult",
    "bag_scores",
    "bit_likelihood",
    "likelihood_scores",
    "log_odds",
    "match_candidates",
    "match_scores",
    "patches_of",
]

FLIP_RATE = 0.01
"""Of noiseless bits, as the attacker takes it: rounding may turn one that lies at its threshold."""

_SCORES = 2**26
"""Scores held at a time: half a gigabyte."""
_CANDIDATES = 4096
"""Candidates whose log-odds are held at a time, in float64."""

Scores = Callable[[Tensor, Tensor], Tensor]
"""`(observed [n, …], some of the pool [m, …]) → scores [n, m]`, larger is better."""


@dataclass(frozen=True)
class MatchResult:
    """How often the attacker is right.

    Attributes:
        top1: percent of releases whose true image scores highest; a tie counts by its chance.
        median_rank: of the true image, 1 is best.
        candidates: how many images the attacker chose from.
        best: index of the highest-scoring candidate of each release, `[n]`.
        top5: percent of releases whose true image is among the five best.
        mean_rank: of the true image.
        interval: Clopper-Pearson, 95 %, of `top1`, percent.
    """

    top1: float
    median_rank: float
    candidates: int
    best: Tensor
    top5: float = math.nan
    mean_rank: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)

    def to_json(self) -> dict[str, object]:
        """The figures without the guesses themselves."""
        return {
            "candidates": self.candidates,
            "records": len(self.best),
            "top1": self.top1,
            "interval": list(self.interval),
            "top5": self.top5,
            "median_rank": self.median_rank,
            "mean_rank": self.mean_rank,
            "chance_top1": 100.0 / self.candidates,
        }


def bit_likelihood(bits: Tensor, messages: Tensor, *, sigma: float | None) -> Tensor:
    """Log-likelihood of each release under each candidate, `[n, candidates]` float64.

    Args:
        bits: 0 or 1, `[n, d]`.
        messages: the candidates' bounded messages, `[candidates, d]`.
        sigma: σ; none scores by the number of equal bits, the likelihood of a small unknown flip rate.
    """
    if sigma is None:
        equal: Tensor = (likelihood_scores(bits.double() * 2 - 1, messages, sigma=None) + bits.shape[1]) / 2
        return equal.round()
    return likelihood_scores(bits.double() * 2 - 1, messages, sigma=sigma)


def log_odds(messages: Tensor, *, sigma: float) -> tuple[Tensor, Tensor]:
    """What a bit's likelihood consists of: ½(log Φ(s) − log Φ(−s)) and ½(log Φ(s) + log Φ(−s)), s = m/σ.

    A bit ±1 has log-likelihood ±first + second. Both as float64 of the messages' shape.
    """
    scaled = messages.double() / sigma
    one, zero = torch.special.log_ndtr(scaled), torch.special.log_ndtr(-scaled)
    return (one - zero) / 2, (one + zero) / 2


def likelihood_scores(observed: Tensor, messages: Tensor, *, sigma: float | None, looks: int = 1) -> Tensor:
    """Log-likelihood of observed bits under each candidate, `[n, candidates]` float64.

    Bits of several looks at a record are independent given its message, so that their mean is all that counts.

    Args:
        observed: means of ±1 over the looks, `[n, d]`.
        messages: the candidates' bounded messages, `[candidates, d]`.
        sigma: σ; none scores by agreement of the bits (those equal less those that differ).
        looks: observations behind each mean.
    """
    seen = observed.double()
    if sigma is None:
        return seen @ ((messages >= 0).double() * 2 - 1).T
    odds, common = log_odds(messages, sigma=sigma)
    found: Tensor = looks * (seen @ odds.T + common.sum(1))
    return found


def patches_of(maps: Tensor, patch: int) -> Tensor:
    """Cut `[n, k, h, w]` into square patches, `[n, patches, k·patch²]`.

    Raises:
        InputError: the patch does not divide height and width.
    """
    n, k, height, width = maps.shape
    if patch < 1 or height % patch or width % patch:
        raise InputError(
            f"a patch of {patch} does not divide {height}×{width}; take a common divisor of the two"
        )
    cut = maps.unfold(2, patch, patch).unfold(3, patch, patch)  # [n, k, rows, columns, patch, patch]
    return cut.permute(0, 2, 3, 1, 4, 5).reshape(n, -1, k * patch * patch)


def bag_scores(observed: Tensor, messages: Tensor, *, sigma: float | None, looks: int = 1) -> Tensor:
    """Log-likelihood where the layout is destroyed: a record is its multiset of patches, `[n, candidates]`.

    Each observed patch may stem from any of the candidate's with equal chance, independently of the others:
    Σ_i log mean_j exp ℓ(observed_i | patch_j). That is the exact likelihood of patches drawn with replacement,
    and close to that of a random order, whose permanent nobody computes.

    Args:
        observed: means of ±1 over the looks, `[n, patches, d]`, in any order.
        messages: bounded messages of the candidates' patches, `[candidates, patches, d]`. Where patches may be
            mirrored too, give the mirrored ones beside the others.
        sigma: σ; none takes a flip rate of `FLIP_RATE`.
        looks: observations behind each mean; their patches must keep one order.
    """
    n, seen, d = observed.shape
    m, own, _ = messages.shape
    if sigma is None:
        right, wrong = math.log1p(-FLIP_RATE), math.log(FLIP_RATE)
        odds = ((messages >= 0).double() * 2 - 1) * (right - wrong) / 2
        common = torch.full((m, own), d * (right + wrong) / 2, dtype=torch.float64, device=messages.device)
    else:
        odds, parts = log_odds(messages, sigma=sigma)
        common = parts.sum(2)
    each = looks * (observed.double().reshape(n * seen, d) @ odds.reshape(m * own, d).T + common.flatten())
    chosen = torch.logsumexp(each.view(n, seen, m, own), dim=3) - math.log(own)
    return chosen.sum(1)


def match_candidates(
    bits: Tensor, messages: Tensor, truth: Tensor, *, sigma: float | None, batch: int = 2000
) -> MatchResult:
    """Match releases against candidates by the likelihood of their bits.

    Args:
        bits: `[n, d]`.
        messages: bounded messages of the candidates, `[candidates, d]`.
        truth: index of each release's image among the candidates, `[n]`.
        sigma: σ of the mechanism, none for `noise: none`.
        batch: releases scored at a time.

    Raises:
        InputError: shapes differ.
    """
    if bits.shape[1] != messages.shape[1]:
        raise InputError(
            f"matching: {list(bits.shape)} bits and {list(messages.shape)} messages need one width"
        )

    def scores(some: Tensor, candidates: Tensor) -> Tensor:
        return bit_likelihood(some, candidates, sigma=sigma)

    return match_scores(bits, messages, truth, scores, batch=batch)


def match_scores(
    observed: Tensor,
    pool: Tensor,
    truth: Tensor,
    scores: Scores,
    *,
    batch: int = 2000,
    candidates: int = _CANDIDATES,
) -> MatchResult:
    """Match observations against candidates by any score.

    Args:
        observed: `[n, …]`.
        pool: the candidates `[m, …]`: what would be seen of them, or the images themselves where `scores` computes
            that; they may lie on another device.
        truth: index of each observation's own record among the candidates, `[n]`.
        scores: of a batch against some candidates.
        batch: observations scored at a time, at most.
        candidates: scored at a time.

    Raises:
        InputError: there is not one truth an observation, or nothing to match.
    """
    if len(truth) != len(observed) or not len(observed):
        raise InputError(
            f"matching: {len(observed)} releases and {len(truth)} truths; there must be one truth a release, "
            "and one release at least"
        )
    hits, firsts, ranks, best = [], [], [], []
    rows = max(1, min(batch, _SCORES // len(pool)))
    for some, own in zip(
        torch.split(observed, rows), torch.split(truth.to(observed.device), rows), strict=True
    ):
        score = torch.cat(
            [scores(some, part.to(observed.device)) for part in torch.split(pool, candidates)], dim=1
        )
        mine = score.gather(1, own[:, None])
        better, equal = (score > mine).sum(1), (score == mine).sum(1)
        hits.append((better == 0).double() / equal)
        # Of those that tie, the true one takes each place with the same chance.
        firsts.append(((5 - better).double() / equal).clamp(0, 1))
        ranks.append(better.double() + (equal + 1).double() / 2)
        best.append(score.argmax(1))
    hit, rank = torch.cat(hits), torch.cat(ranks)
    low, high = clopper_pearson(float(hit.sum()), len(hit))
    return MatchResult(
        top1=100.0 * float(hit.mean()),
        median_rank=float(rank.median()),
        candidates=len(pool),
        best=torch.cat(best),
        top5=100.0 * float(torch.cat(firsts).mean()),
        mean_rank=float(rank.mean()),
        interval=(100.0 * low, 100.0 * high),
    )
