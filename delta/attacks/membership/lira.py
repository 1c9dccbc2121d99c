"""LiRA, the likelihood-ratio attack: is this confidence what models show of a record they know, or of a new one?

Carlini, Chien, Nasr, Song, Terzis & Tramèr, "Membership Inference Attacks From First Principles", S&P 2022
(arXiv 2112.03570), the online attack: of each record some shadow models have been trained on it and some have not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from delta.errors import InputError

__all__ = ["FEWEST", "OWN_VARIANCE_FROM", "lira_scores", "shadow_masks"]

FEWEST = 4
"""Shadow models: two that know each record and two that do not."""
OWN_VARIANCE_FROM = 64
"""Shadow models from which on each record gets variances of its own; below, all records share theirs (section VI-B)."""
_LEAST_VARIANCE = 1e-12


def shadow_masks(records: int, *, shadows: int, seed: int) -> Tensor:
    """Which models know which records, `[shadows + 1, records]` bool: the shadow models, and the target last.

    Each record is in ⌊shadows/2⌋ of the shadow models, and in the target by the flip of a coin, independently of
    the others: members and non-members differ in nothing else.

    Args:
        records: in the pool.
        shadows: models besides the target, `FEWEST` at least.
        seed: of the choice.

    Raises:
        InputError: too few of either.
    """
    if shadows < FEWEST or records < 8:
        raise InputError(
            f"LiRA needs {FEWEST} shadow models and 8 records at least, got {shadows} and {records}; ask for more"
        )
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(shadows, records, generator=generator).argsort(dim=0).argsort(dim=0)
    target = torch.rand(1, records, generator=generator) < 0.5
    return torch.cat([places < shadows // 2, target])


def lira_scores(target: Tensor, shadows: Tensor, known: Tensor) -> Tensor:
    """The log-likelihood ratio log N(φ; in) − log N(φ; out), `[n]` float64: positive speaks for a member.

    Args:
        target: the target's logit-scaled confidences φ, `[n]`.
        shadows: those of the shadow models, `[models, n]`.
        known: which of these were trained on which record, `[models, n]` bool, two of each kind a record at least.

    Raises:
        InputError: shapes differ, or a record has fewer than two models of a kind.
    """
    if shadows.shape != known.shape or target.shape != shadows.shape[1:]:
        raise InputError(
            f"LiRA takes confidences [n] of the target and [models, n] of the shadows and their masks; got "
            f"{list(target.shape)}, {list(shadows.shape)} and {list(known.shape)}"
        )
    inside, outside = known.sum(0), (~known).sum(0)
    if min(int(inside.min()), int(outside.min())) < 2:
        raise InputError(
            "LiRA needs two models that know each record and two that do not; train more shadow models"
        )
    own = len(shadows) >= OWN_VARIANCE_FROM
    phi = target.double()
    scores = torch.zeros_like(phi)
    for mask, sign in ((known, 1.0), (~known, -1.0)):
        mean, variance = _fits(shadows.double(), mask, own=own)
        scores += sign * -0.5 * ((phi - mean).square() / variance + variance.log())
    return scores


def _fits(values: Tensor, mask: Tensor, *, own: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance of the models in the mask, `[n]` each; one variance for all records unless `own`."""
    count = mask.sum(0).double()
    mean = (values * mask).sum(0) / count
    squares = ((values - mean).square() * mask).sum(0)
    variance = squares / (count - 1) if own else (squares.sum() / (count - 1).sum()).expand_as(mean)
    return mean, variance.clamp_min(_LEAST_VARIANCE)
