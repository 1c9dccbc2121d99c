"""Calibrated fusion with random bits through a trained cloud model: never worse than M_main but for noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor

from delta.methods.delta.fusion import fuse
from delta.training.cloud_stage import fit_fusion
from delta.training.config import TrainConfig
from delta.training.controls import beats, cloud_logits, random_bits
from tests.trained import Trained, settings

DRAWS = 60


@dataclass(frozen=True)
class Outcomes:
    """What random bits did, draw by draw.

    Attributes:
        lost: test records of 100 that M_main alone gets right and the fusion wrong, `[draws]`.
        gained: the other way round.
        alpha: as fitted on held-out records.
    """

    lost: Tensor
    gained: Tensor
    alpha: Tensor


@pytest.fixture(scope="module")
def random_logits(trained: Trained) -> list[tuple[Tensor, Tensor]]:
    """Of the trained cloud model on fair bits, for held-out and for test records, anew each time."""
    stage = trained.stages["none"]
    held, tested, size = len(trained.private.held_out.y), len(trained.test.y), stage.release.payload_bytes
    found = []
    for seed in range(DRAWS):
        z_cloud = cloud_logits(stage.cloud, random_bits(held + tested, size, seed=1000 + seed))
        found.append((z_cloud[:held], z_cloud[held:]))
    return found


def _outcomes(
    trained: Trained, random_logits: list[tuple[Tensor, Tensor]], fusion: Literal["calibrated", "sum"]
) -> Outcomes:
    config = TrainConfig.of(settings(fusion=fusion))
    held, test = trained.private.held_out, trained.test
    z_held, z_test = trained.private.main_logits(held.x), trained.private.main_logits(test.x)
    right = z_test.argmax(1) == test.y
    rows = []
    for z_cloud_held, z_cloud_test in random_logits:
        fitted = fit_fusion(config, z_held, z_cloud_held, held.y)
        fused = fuse(z_test, z_cloud_test, alpha=fitted.alpha, bound=fitted.bound).argmax(1) == test.y
        rows.append((float((right & ~fused).sum()), float((fused & ~right).sum()), fitted.alpha))
    return Outcomes(*torch.tensor(rows, dtype=torch.float64).T)


def test_calibrated_fusion_with_random_bits_is_the_main_model_but_for_noise(trained, random_logits):
    found = _outcomes(trained, random_logits, "calibrated")
    loss = found.lost - found.gained
    assert abs(float(loss.mean())) <= 1.0  # of 100 records, on average
    # One draw in twenty may get a weight by chance, and one in twenty of those may look significant.
    significant = sum(
        beats(int(lost), int(gained)) for lost, gained in zip(found.lost, found.gained, strict=True)
    )
    assert significant <= 3
    # P(12 of 60, at 5 % each) < 1 in 10,000: the rest is M_main exactly
    assert int((found.alpha > 0).sum()) < 12
    exact = found.alpha == 0
    assert not found.lost[exact].any()
    assert not found.gained[exact].any()


def test_the_sum_is_hurt_by_the_same_bits(trained, random_logits):
    """The negative control: the bound above is not met by any fusion whatever."""
    found = _outcomes(trained, random_logits, "sum")
    assert bool((found.alpha == 1.0).all())
    loss = found.lost - found.gained
    assert float(loss.mean()) > 3.0
    assert float(loss.mean()) > 5 * float(loss.std()) / DRAWS**0.5  # far from chance
    hurt = sum(beats(int(lost), int(gained)) for lost, gained in zip(found.lost, found.gained, strict=True))
    assert hurt > 3


def test_the_draws_are_of_the_model_and_unlike_each_other(random_logits):
    first, second = random_logits[0][1], random_logits[1][1]
    assert not torch.equal(first, second)
    assert float(first.std(dim=0).max()) > 0.1  # a model that says the same of everything would prove nothing


@pytest.mark.parametrize(
    ("gain", "loss", "sure"), [(0, 0, False), (3, 0, False), (4, 0, True), (30, 20, False)]
)
def test_mcnemar_asks_for_more_than_chance(gain, loss, sure):
    assert beats(gain, loss) is sure
    assert not beats(loss, gain)
