"""Whether a budget can pay for a data set is asked before anything is trained."""

from __future__ import annotations

import math

import pytest
import torch

from delta.data.records import Dataset, DataSplits
from delta.errors import BudgetExceededError
from delta.privacy.gaussian import mu_of
from delta.training.affordable import check_budget
from delta.training.api import train
from delta.training.config import TrainConfig
from tests.trained import settings, small_parts

N = 40


def _data(subjects):
    return Dataset.of(
        name="people",
        pixels=torch.randint(
            0, 256, (N, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        ),
        labels=torch.arange(N) % 10,
        class_names=[str(i) for i in range(10)],
        subjects=subjects,
    )


def _config(**changes):
    return TrainConfig.of(settings(noise={"epsilon": 8}, **changes))


@pytest.mark.parametrize(("people", "most"), [(N, 1), (20, 2), (1, N)])
def test_the_subject_with_the_most_records_decides(people, most):
    data = _data([f"p{i % people}" for i in range(N)])
    needed = mu_of(epsilon=8, delta=1e-5) * math.sqrt(most)
    check_budget(_config(budget={"mu": needed * 1.001}), data)
    with pytest.raises(BudgetExceededError, match=f"{most} records of one subject"):
        check_budget(_config(budget={"mu": needed * 0.999}), data)


def test_labels_count_and_what_is_unlimited_is_not_asked():
    data = _data([""] * N)
    check_budget(_config(), data)
    needed = mu_of(epsilon=8, delta=1e-5) * math.sqrt(N)
    check_budget(_config(budget={"mu": needed * 1.001}), data)
    labels = {"kind": "randomized-response", "epsilon": 4}
    with pytest.raises(BudgetExceededError, match="without a subject"):
        check_budget(_config(budget={"mu": needed * 1.001}, labels=labels), data)
    with pytest.raises(BudgetExceededError, match="without noise"):
        check_budget(TrainConfig.of(settings()), data, budget=2.0)


def test_training_in_this_process_keeps_the_budget_too(digits: DataSplits):
    few = digits.limited(100, test_limit=40)
    with pytest.raises(BudgetExceededError, match="nothing was sent"):
        train(small_parts(), few, **settings(noise={"epsilon": 8}, budget={"mu": 1.0}, held_out=0.2))
