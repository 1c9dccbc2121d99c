"""I4 of training: whatever a cloud answers, it is survived, or is one clear line and nothing is lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from delta.errors import CloudAnswerError, CloudDeadlineError, CloudError
from delta.privacy.ledger import InMemoryLedger
from delta.training.cloud_stage import CloudStage, Stage2, train_cloud_stage
from delta.training.config import FitConfig, TrainConfig
from delta.training.controls import cloud_logits, random_bits
from delta.training.private_stage import PrivateStage
from tests.hostile_training import HostileTrainingCloud, Lies
from tests.hostile_training_lies import (
    ENDLESS,
    REFUSED,
    STATES,
    STEP_LIES,
    SURVIVED,
    UNFIT,
    UPLOADS,
    changed_weights,
)
from tests.named_stage import KEY, config_of, named_stage
from tests.trained import Trained

ONE_SHOT = config_of()
INTERACTIVE = config_of(mode="interactive", cloud_fit=FitConfig(epochs=2, batch=16))
STEPS = 6  # two epochs of 16, 16 and 8 records


@pytest.fixture
def stage(trained: Trained) -> PrivateStage:
    """40 records to fit on and 10 held out."""
    return named_stage(trained.private)


def run(stage: PrivateStage, config: TrainConfig, cloud: HostileTrainingCloud) -> CloudStage:
    """Stage 2 under a fixed key, so that two runs may be compared bit for bit."""
    return train_cloud_stage(stage, config, where=Stage2(cloud=cloud), key=KEY)


# Uploads under lies


@pytest.mark.parametrize("name", UPLOADS)
def test_a_cut_or_a_lie_about_what_is_stored_may_only_repeat_or_shorten(stage, name):
    lies, error = UPLOADS[name]
    whole, cloud = HostileTrainingCloud(), HostileTrainingCloud(lies)
    ledger = InMemoryLedger(budget=100.0)
    run(stage, ONE_SHOT, whole)
    where = Stage2(cloud=cloud, ledger=ledger)
    with pytest.raises(error, match=r"^[^\n]+$") if error else nullcontext():
        train_cloud_stage(stage, ONE_SHOT, where=where, key=KEY)
    assert cloud.releases.items() <= whole.releases.items()  # no release is drawn twice
    assert len(ledger.entries()) == 50
    if error is None:
        assert cloud.releases == whole.releases
    assert {row[0] for row in cloud.transcript} <= {row[0] for row in whole.transcript}
    assert len(cloud.transcript) < 600


# What comes of lies


@pytest.mark.parametrize("name", REFUSED)
def test_an_answer_that_cannot_be_is_one_clear_line(stage, name):
    lies, error = REFUSED[name]
    with pytest.raises(error) as caught:
        run(stage, ONE_SHOT, HostileTrainingCloud(lies))
    text = str(caught.value)
    assert "\n" not in text
    assert 20 < len(text) < 300


@pytest.mark.parametrize("name", SURVIVED)
def test_a_lie_of_the_right_form_costs_the_cloud_its_weight_at_most(stage, name):
    """α is fitted on held-out records: it stays within its limit, and the private models are as they were."""
    result = run(stage, ONE_SHOT, HostileTrainingCloud(SURVIVED[name]))
    assert 0.0 <= result.fusion.alpha <= result.fusion.alpha_max == 4.0
    assert torch.equal(result.main_logits(stage.held_out.x), stage.main_logits(stage.held_out.x))
    if name == "logits: zeros":
        assert result.fusion.alpha == 0.0


@pytest.mark.parametrize("name", STEP_LIES)
def test_interactive_training_survives_every_answer_to_a_step(stage, name):
    lie = STEP_LIES[name]
    result = run(stage, INTERACTIVE, HostileTrainingCloud(Lies(step=lambda _, truth: lie(truth))))
    assert result.bad_answers == (STEPS if name in UNFIT else 0)
    assert all(bool(t.isfinite().all()) for t in result.private.main.state_dict().values())
    assert bool(result.main_logits(stage.held_out.x).isfinite().all())
    assert 0.0 <= result.fusion.alpha <= 4.0


def test_unfit_answers_are_counted_one_by_one_and_teach_nothing(stage):
    """Without a fit answer M_main learns from labels alone: which unfit one came makes no difference."""

    def trained(lie: Callable[[int, Tensor], Any]) -> CloudStage:
        return run(stage, INTERACTIVE, HostileTrainingCloud(Lies(step=lie)))

    some = trained(lambda number, truth: truth if number % 2 else truth * torch.nan)
    never, other, honest = (
        trained(lambda _, truth: None),
        trained(lambda _, truth: truth.double()),
        trained(lambda _, truth: truth),
    )
    assert (some.bad_answers, never.bad_answers, honest.bad_answers) == (3, STEPS, 0)
    weights = [
        torch.cat([p.flatten() for p in found.private.main.parameters()])
        for found in (never, other, some, honest)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[2], weights[3])


@pytest.mark.parametrize("name", UNFIT)
def test_an_unfit_answer_for_held_out_records_ends_interactive_training(stage, name):
    with pytest.raises(CloudAnswerError) as caught:
        run(stage, INTERACTIVE, HostileTrainingCloud(Lies(held_out=UNFIT[name])))
    assert "\n" not in str(caught.value)


def test_finite_weights_that_compute_nonsense_are_found_before_a_figure_is_made(stage):
    def spoilt(weights: dict[str, Tensor]) -> None:
        weights["adapter.bn.running_var"] = torch.full((8,), -1.0)

    result = run(stage, ONE_SHOT, HostileTrainingCloud(Lies(weights=changed_weights(spoilt))))
    bits = random_bits(5, result.release.payload_bytes, seed=0)
    with pytest.raises(CloudAnswerError, match="logits that are not finite"):
        cloud_logits(result.cloud, bits)


@pytest.mark.parametrize("states", ENDLESS)
def test_a_cloud_that_never_ends_a_job_is_left_and_an_honest_one_goes_on(stage, states):
    ledger = InMemoryLedger(budget=100.0)
    cloud = HostileTrainingCloud(Lies(states=itertools.cycle(ENDLESS[states])))
    where = Stage2(cloud=cloud, ledger=ledger, patience_s=0.2)
    with pytest.raises(CloudDeadlineError, match=r"for 0\.2 s; .* run again to go on"):
        train_cloud_stage(stage, ONE_SHOT, where=where, key=KEY)
    assert [row[0] for row in cloud.transcript][-1] == "watch"
    assert len(ledger.entries()) == 50
    result = train_cloud_stage(stage, ONE_SHOT, where=Stage2(ledger=ledger), key=KEY)
    assert result.debited == 0


def test_a_reason_that_the_cloud_gives_is_told_and_a_job_that_failed_is_not_fetched(stage):
    cloud = HostileTrainingCloud(Lies(states=STATES["failed"]))
    with pytest.raises(CloudError, match="the training in the cloud failed: out of memory"):
        run(stage, ONE_SHOT, cloud)
    assert [row[0] for row in cloud.transcript][-1] == "watch"
