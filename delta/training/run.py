"""A whole run: both stages, every control, the best main-only model, and a bundle."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from delta.bundle.store import Bundle
from delta.data.records import Dataset, DataSplits
from delta.models.splitting import Parts
from delta.privacy.claim import PrivacyClaim, claim_of
from delta.privacy.ledger import Ledger, Spent
from delta.release.noise import NoiseKey
from delta.training.affordable import check_budget
from delta.training.api import lineage_of
from delta.training.assemble import assemble_bundle
from delta.training.cloud_stage import CloudStage, Stage2, train_cloud_stage
from delta.training.config import TrainConfig
from delta.training.controls import Controls, beats, measure_controls
from delta.training.fit import Progress, quiet
from delta.training.main_only import MainOnly, train_main_only
from delta.training.private_stage import Labelled, train_private_stage
from delta.training.release_stage import check_release

__all__ = ["Run", "run_training"]


@dataclass(frozen=True)
class Run:
    """What a run leaves.

    Attributes:
        bundle: whole; `bundle.facts.figures` holds the accuracies, percent.
        controls: accuracies on the test records.
        main_only: the best main-only model of the same private MACs.
        stage: stage 2.
        claim: what may be said of the releases.
        prior: percent that guessing the commonest class gives.
        cloud_helps: whether Delta beats its main model alone beyond chance.
        beats_main_only: whether it beats the best main-only model beyond chance.
        seconds: of each stage: `private`, `release`, `upload`, `cloud`, `controls`, `main_only`.
        records: training records, held-out ones included.
        tested: test records.
        from_checkpoints: fits that were finished before, with the seconds that each once took.
    """

    bundle: Bundle
    controls: Controls
    main_only: MainOnly
    stage: CloudStage
    claim: PrivacyClaim
    prior: float
    cloud_helps: bool
    beats_main_only: bool
    seconds: Mapping[str, float]
    records: int
    tested: int
    from_checkpoints: Mapping[str, float] = field(default_factory=dict)

    @property
    def bytes_per_record(self) -> dict[str, float]:
        """Serialised bytes of the whole training across the boundary, a training record."""
        return {"up": self.stage.bytes_up / self.records, "down": self.stage.bytes_down / self.records}

    @property
    def verdict(self) -> str:
        """In plain words: was the cloud worth it?"""
        controls, rival = self.controls, self.main_only
        macs = self.bundle.facts.private_macs / 1e6
        chance = self.prior + 196.0 * math.sqrt(self.prior / 100 * (1 - self.prior / 100) / self.tested)
        known = (
            ", and so the cloud knows them" if controls.cloud_alone > chance else ": no better than chance"
        )
        leak = (
            f"The cloud model guesses {controls.cloud_alone:.1f} % of the labels by itself "
            f"(prior {self.prior:.1f} %){known}."
        )
        if not self.cloud_helps:
            return (
                f"The cloud is not worth it here: Delta {controls.delta:.1f} %, its main model alone "
                f"{controls.main_alone:.1f} %; the difference is within chance. {leak}"
            )
        rest = f"a main-only model of the same {macs:.2f} M private MACs reaches {rival.accuracy:.1f} %"
        lift = f"lifts Delta's main model from {controls.main_alone:.1f} to {controls.delta:.1f} %"
        if self.beats_main_only:
            return f"The cloud {lift}; {rest}. {leak}"
        within = "; the difference is within chance" if controls.delta > rival.accuracy else ""
        return f"The cloud is not worth it here: it {lift}, and {rest} without any cloud{within}. {leak}"


def run_training(
    parts: Parts,
    data: DataSplits,
    config: TrainConfig,
    *,
    where: Stage2,
    outbound: Callable[[CloudStage, Bundle], None] = lambda stage, bundle: None,
    key: NoiseKey | None = None,
    progress: Progress = quiet,
) -> Run:
    """Train Delta, its controls and its rival.

    Args:
        parts: a split model; trained in place unless `whole` is none.
        data: training and test records.
        config: of the run.
        where: the cloud, the ledger, and what is kept.
        outbound: sends what else is to be sent, such as a promotion. It comes before any further private record
            meets the cloud's weights, which may have been made to fail on some records (I1).
        key: noise key of a run that can be repeated, since none of its releases leaves this process; none draws
            fresh ones.
        progress: told after every step.

    Raises:
        ConfigError: a setting is wrong, or model and data do not fit together.
        BudgetExceededError: the budget is too small for the data set; nothing was sent.
        CloudError: the cloud failed; the same call goes on from what is stored.
    """
    check_release(config, parts)
    check_budget(config, data.train, budget=where.ledger.budget)
    started = time.perf_counter()
    stage = train_private_stage(parts, data.train, config, progress=progress, store=where.store)
    trained = time.perf_counter()
    cloud = train_cloud_stage(stage, config, where=where, key=key, progress=progress)
    draft = assemble_bundle(
        stage,
        cloud,
        config,
        class_names=tuple(data.train.class_names),
        lineage=lineage_of(config, data.train),
        figures={},
    )
    outbound(cloud, draft)
    answered = time.perf_counter()
    test = Labelled.of(data.test, stage.input)
    measured = measure_controls(
        stage, cloud, test, config, key=key or NoiseKey.generate(), store=where.store, progress=progress
    )
    controlled = time.perf_counter()
    rival = train_main_only(
        stage,
        config,
        test,
        private_macs=draft.facts.private_macs,
        progress=progress,
        store=where.store,
    )
    ended = time.perf_counter()
    right, alone = measured.delta_right, measured.main_right
    return Run(
        bundle=replace(draft, facts=draft.facts.model_copy(update={"figures": vars(measured.controls)})),
        controls=measured.controls,
        main_only=rival,
        stage=cloud,
        claim=claim_of(
            cloud.release,
            labels=config.labels.kind,
            label_epsilon=config.labels.epsilon,
            person=_worst(where.ledger, data.train),
            releases=config.views,
        ),
        prior=100.0 * float(torch.bincount(data.test.labels).max()) / len(data.test),
        cloud_helps=beats(int((right & ~alone).sum()), int((alone & ~right).sum())),
        beats_main_only=beats(int((right & ~rival.right).sum()), int((rival.right & ~right).sum())),
        seconds={
            "private": trained - started,
            **cloud.seconds,
            "controls": controlled - answered,
            "main_only": ended - controlled,
        },
        records=len(data.train),
        tested=len(data.test),
        from_checkpoints={} if where.store is None else dict(where.store.taken),
    )


def _worst(ledger: Ledger, data: Dataset) -> Spent | None:
    """What the person who has spent the most has spent; none where subjects are unknown."""
    subjects = {subject for subject in data.subjects if subject}
    if not subjects:
        return None
    return max((ledger.spent(subject) for subject in subjects), key=lambda spent: spent.joint_mu)
