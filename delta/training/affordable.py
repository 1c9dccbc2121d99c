"""Whether a budget can pay for a data set at all: asked before hours of training, not after."""

from __future__ import annotations

import math
from collections import Counter

from delta.data.records import Dataset
from delta.errors import BudgetExceededError
from delta.privacy.accountant import label_mu
from delta.privacy.gaussian import mu_of_sigma
from delta.privacy.ledger import UNLIMITED, Budget
from delta.training.config import TrainConfig

__all__ = ["check_budget"]


def check_budget(config: TrainConfig, data: Dataset, *, budget: Budget | None = None) -> None:
    """Refuse a budget that is too small even for a subject who has spent nothing.

    The ledger is asked again, with what has been spent, before anything is sent.

    Args:
        config: noise, labels, views and share of held-out records.
        data: training records, held-out ones included.
        budget: of each subject; none for the configuration's.

    Raises:
        BudgetExceededError: the records of one subject alone would pass it.
    """
    limit = config.subject_budget if budget is None else budget
    if limit == UNLIMITED:
        return
    clip_norm = config.bounding.clip_norm
    sigma = config.sigma(clip_norm=clip_norm)
    if sigma is None:
        raise BudgetExceededError(
            "a release without noise spends without bound; add noise, or set the budget to unlimited"
        )
    release = mu_of_sigma(sigma=sigma, clip_norm=clip_norm) ** 2
    label = 0.0 if config.labels.epsilon is None else label_mu(epsilon=config.labels.epsilon) ** 2
    subject, records = Counter(data.subjects).most_common(1)[0]
    # How many of a subject's records are held out is not known yet: one release each is the least.
    least = math.sqrt(records * release + _trained(records, len(data), config) * label)
    if least > limit * (1 + 1e-9):
        whose = (
            f"the {records} records of one subject"
            if subject
            else f"the {records} records without a subject, which count as one person's,"
        )
        raise BudgetExceededError(
            f"the budget is too small for the data set, and nothing was sent: {whose} need at least "
            f"μ = {least:.4g}, the budget is {limit:.4g}; raise it, add noise, or take fewer records"
        )


def _trained(records: int, total: int, config: TrainConfig) -> int:
    """The fewest of a subject's records that are trained on, and whose labels are told."""
    return max(0, records - round(config.held_out * total))
