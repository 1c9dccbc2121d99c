"""Candidate matching: which of N images was it? The attacker knows the backbone and everything but the noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from delta.errors import InputError

__all__ = ["MatchResult", "bit_likelihood", "match_candidates"]


@dataclass(frozen=True)
class MatchResult:
    """How often the attacker is right.

    Attributes:
        top1: percent of releases whose true image scores highest; a tie counts by its chance.
        median_rank: of the true image, 1 is best.
        candidates: how many images the attacker chose from.
        best: index of the highest-scoring candidate of each release, `[n]`.
    """

    top1: float
    median_rank: float
    candidates: int
    best: Tensor


def bit_likelihood(bits: Tensor, messages: Tensor, *, sigma: float | None) -> Tensor:
    """Log-likelihood of each release under each candidate, `[n, candidates]` float64.

    Args:
        bits: 0 or 1, `[n, d]`.
        messages: the candidates' bounded messages, `[candidates, d]`.
        sigma: σ; none scores by the number of equal bits, the likelihood of a small unknown flip rate.
    """
    b = bits.double()
    if sigma is None:
        sign = (messages >= 0).double()
        equal: Tensor = b @ sign.T + (1 - b) @ (1 - sign).T
        return equal
    scaled = messages.double() / sigma
    likelihood: Tensor = b @ torch.special.log_ndtr(scaled).T + (1 - b) @ torch.special.log_ndtr(-scaled).T
    return likelihood


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
    if bits.shape[1] != messages.shape[1] or len(truth) != len(bits):
        raise InputError(
            f"matching: {list(bits.shape)} bits and {list(messages.shape)} messages need one width, "
            f"and {len(truth)} truths one entry a release"
        )
    hits, ranks, best = [], [], []
    for start in range(0, len(bits), batch):
        score = bit_likelihood(bits[start : start + batch], messages, sigma=sigma)
        own = score.gather(1, truth[start : start + batch, None])
        better, equal = (score > own).sum(1), (score == own).sum(1)
        hits.append((better == 0).double() / equal)
        ranks.append(better.double() + (equal + 1).double() / 2)
        best.append(score.argmax(1))
    return MatchResult(
        top1=100.0 * float(torch.cat(hits).mean()),
        median_rank=float(torch.cat(ranks).median()),
        candidates=len(messages),
        best=torch.cat(best),
    )
