"""A backbone that is trained with the main model: what changes, what is frozen, and what its provenance says."""

from __future__ import annotations

import pytest
import torch

from delta.data.records import DataSplits
from delta.release.components import computation_hash
from delta.training.checkpoint import FitStore
from delta.training.config import FitConfig, TrainConfig
from delta.training.private_stage import train_private_stage
from delta.training.release_stage import build_release
from tests.trained import settings, small_parts

QUICK = {
    "whole": FitConfig(epochs=1, batch=32),
    "main_fit": FitConfig(epochs=1, batch=32),
    "held_out": 0.2,
    "augment": "shift",
}


@pytest.fixture(scope="module")
def few(digits: DataSplits) -> DataSplits:
    return digits.limited(100, test_limit=40)


def _stage(few, store=None, **changes):
    return train_private_stage(
        small_parts(), few.train, TrainConfig.of(settings(**QUICK, **changes)), store=store
    )


def test_a_tuned_backbone_leaves_the_teachers_and_is_frozen_then(few):
    plain, tuned = _stage(few), _stage(few, tune_backbone=True)
    teacher = tuned.split.model.state_dict()
    assert all(torch.equal(teacher[n], t) for n, t in plain.split.model.state_dict().items())
    assert computation_hash(plain.backbone) != computation_hash(tuned.backbone)
    own = dict(tuned.split.backbone.named_parameters())
    moved = [n for n, t in tuned.backbone.named_parameters() if not torch.equal(t, own[n])]
    assert moved  # the copy has learned, the teacher's has not
    assert not any(p.requires_grad for p in tuned.backbone.parameters())
    assert not tuned.backbone.training
    assert torch.equal(plain.decomposer.basis, tuned.decomposer.basis)  # from before the tuning


def test_the_claim_of_a_tuned_backbone_rests_on_private_data_alone(few):
    config = TrainConfig.of(settings(**QUICK, tune_backbone=True))
    release, _ = build_release(_stage(few, tune_backbone=True), config)
    kinds = {name: p.kind for name, p in release.provenances.items()}
    assert kinds["backbone"] == kinds["basis"] == "private"
    assert "before it was tuned" in release.basis.component.provenance.note
    assert "with the main model" in release.backbone.provenance.note


def test_a_tuned_backbone_comes_back_from_its_checkpoint(few, tmp_path):
    stages = []
    for _ in range(2):
        stages.append(_stage(few, FitStore(tmp_path, "few"), tune_backbone=True))
    first, again = stages
    assert computation_hash(first.backbone) == computation_hash(again.backbone)
    x = first.held_out.x
    assert torch.equal(first.main_logits(x), again.main_logits(x))
