"""How well a score tells two kinds of records apart: ROC, the area under it, and what is caught at few false alarms.

Intervals take the records as independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from delta.attacks.intervals import clopper_pearson
from delta.errors import InputError

__all__ = ["FPRS", "Caught", "Curve", "area", "caught_at", "curve_of", "roc"]

FPRS = (0.001, 0.01)
"""False-positive rates that attacks are read at (Carlini et al. 2022, arXiv 2112.03570, section III)."""


@dataclass(frozen=True)
class Caught:
    """What a threshold catches whose false alarms are at most a stated share.

    Attributes:
        fpr: the share allowed.
        tpr: share of the positives above the threshold.
        interval: of it, Clopper-Pearson.
        false_positives: negatives above the threshold: ⌊fpr · negatives⌋ at most.
        negatives: how many there are.
        fpr_interval: of the threshold's own false-positive rate, Clopper-Pearson.
    """

    fpr: float
    tpr: float
    interval: tuple[float, float]
    false_positives: int
    negatives: int
    fpr_interval: tuple[float, float]

    @property
    def needed(self) -> int:
        """Negatives from which on one false alarm is no more than `fpr`."""
        return math.ceil(1 / self.fpr)

    @property
    def resolved(self) -> bool:
        """Whether there are as many; else the threshold lets no false alarm through, and `tpr` is a lower bound."""
        return self.negatives >= self.needed

    def to_json(self) -> dict[str, Any]:
        """The figures."""
        return {
            "tpr": self.tpr,
            "interval": list(self.interval),
            "false_positives": self.false_positives,
            "fpr_interval": list(self.fpr_interval),
            "non_members": self.negatives,
            "non_members_needed": self.needed,
            "resolved": self.resolved,
        }


@dataclass(frozen=True)
class Curve:
    """A score's figures.

    Attributes:
        auc: area under the ROC curve; ½ is guessing.
        interval: of it (DeLong, 95 %).
        caught: at each of the asked false-positive rates.
        positives: how many.
        negatives: how many.
    """

    auc: float
    interval: tuple[float, float]
    caught: tuple[Caught, ...]
    positives: int
    negatives: int

    @property
    def better_than_guessing(self) -> bool:
        """Whether the whole interval lies above ½."""
        return self.interval[0] > 0.5

    def to_json(self) -> dict[str, Any]:
        """The figures."""
        return {
            "auc": self.auc,
            "auc_interval": list(self.interval),
            "tpr_at_fpr": {f"{each.fpr:g}": each.to_json() for each in self.caught},
        }


def curve_of(positives: Tensor, negatives: Tensor, *, fprs: Sequence[float] = FPRS) -> Curve:
    """All figures of one score; larger scores speak for a positive.

    Args:
        positives: scores `[p]`.
        negatives: scores `[n]`.
        fprs: false-positive rates to read it at.

    Raises:
        InputError: fewer than two of either, or a score that is not a number.
    """
    auc, interval = area(positives, negatives)
    return Curve(
        auc=auc,
        interval=interval,
        caught=tuple(caught_at(positives, negatives, fpr=fpr) for fpr in fprs),
        positives=len(positives),
        negatives=len(negatives),
    )


def roc(positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """False- and true-positive rates `[t]` of every threshold, from (0, 0) to (1, 1); records that tie go together."""
    positives, negatives = _checked(positives), _checked(negatives)
    thresholds = torch.cat([positives, negatives]).sort(descending=True).values
    thresholds = thresholds[torch.cat([torch.ones(1, dtype=torch.bool), thresholds.diff() != 0])]
    rates = [
        torch.searchsorted(-scores.sort(descending=True).values, -thresholds, right=True).double()
        / len(scores)
        for scores in (negatives, positives)
    ]
    start = torch.zeros(1, dtype=torch.float64)
    return torch.cat([start, rates[0]]), torch.cat([start, rates[1]])


def area(
    positives: Tensor, negatives: Tensor, *, confidence: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """AUC, P(positive > negative) + ½P(equal), with DeLong's interval.

    DeLong, DeLong & Clarke-Pearson (Biometrics 1988) through midranks (Sun & Xu 2014). Where the two do not overlap
    at all its variance is 0: the interval is then that of ⌊min(p, n)⌋ disjoint pairs that were all told right.

    Args:
        positives: scores `[p]`.
        negatives: scores `[n]`.
        confidence: both sides together.

    Raises:
        InputError: fewer than two of either, or a score that is not a number.
    """
    positives, negatives = _checked(positives), _checked(negatives)
    p, n = len(positives), len(negatives)
    together = _midranks(torch.cat([positives, negatives]))
    # Of each positive, the share of negatives below it; of each negative, the share of positives above it.
    below = (together[:p] - _midranks(positives)) / n
    above = 1 - (together[p:] - _midranks(negatives)) / p
    auc = float(below.mean())
    spread = math.sqrt(float(below.var()) / p + float(above.var()) / n)
    if spread < 1e-12:
        low, high = clopper_pearson(round(auc * min(p, n)), min(p, n), confidence=confidence)
        return auc, (low, high)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * spread
    return auc, (max(0.0, auc - reach), min(1.0, auc + reach))


def caught_at(positives: Tensor, negatives: Tensor, *, fpr: float, confidence: float = 0.95) -> Caught:
    """What is caught above the lowest threshold that lets at most ⌊fpr · n⌋ of the negatives through.

    Args:
        positives: scores `[p]`.
        negatives: scores `[n]`, which set the threshold.
        fpr: in (0, 1).
        confidence: of both intervals.

    Raises:
        InputError: fewer than two of either, a score that is not a number, or `fpr` out of range.
    """
    positives, negatives = _checked(positives), _checked(negatives)
    if not 0 < fpr < 1:
        raise InputError(f"a false-positive rate lies between 0 and 1, got {fpr:g}")
    allowed = math.floor(fpr * len(negatives) + 1e-9)  # so that 0.01 of 300 is 3
    threshold = negatives.sort(descending=True).values[allowed]
    passed = int((negatives > threshold).sum())
    right = int((positives > threshold).sum())
    return Caught(
        fpr=fpr,
        tpr=right / len(positives),
        interval=clopper_pearson(right, len(positives), confidence=confidence),
        false_positives=passed,
        negatives=len(negatives),
        fpr_interval=clopper_pearson(passed, len(negatives), confidence=confidence),
    )


def _midranks(values: Tensor) -> Tensor:
    """Ranks from 1 `[n]` float64; equal values share the mean of their places."""
    ordered = values.sort().values
    before = torch.searchsorted(ordered, values, right=False)
    upto = torch.searchsorted(ordered, values, right=True)
    return (before + upto + 1).double() / 2


def _checked(scores: Tensor) -> Tensor:
    flat = scores.detach().double().cpu().flatten()
    if len(flat) < 2 or bool(flat.isnan().any()):
        raise InputError(
            f"a ROC curve needs two scores of either kind at least, none of them NaN; got {len(flat)} of one kind"
        )
    return flat
