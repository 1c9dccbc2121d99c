"""Membership inference against a bundle's two models, and against models retrained as it was."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from delta.attacks.membership.curves import curve_of
from delta.attacks.membership.lira import lira_scores, shadow_masks
from delta.attacks.membership.recipe import Recipe
from delta.attacks.membership.report import (
    Copy,
    MembershipReport,
    MembershipResult,
    MembershipSettings,
    Name,
    Sees,
    Target,
)
from delta.attacks.membership.scores import Ask, Signals, asks_main, asks_releases, asks_stored, signals_of
from delta.attacks.membership.shadows import label_config, train_cloud_shadows, train_main_shadows
from delta.attacks.membership.threshold import label_only_scores, loss_scores
from delta.attacks.release_tap import ReleaseTap, victim_key
from delta.bundle.store import Bundle
from delta.data.records import Dataset, DataSplits
from delta.device import device_of
from delta.errors import ConfigError, MethodError
from delta.methods.delta.cloud import load_cloud_model
from delta.methods.delta.parts import PrivateParts, load_private_parts
from delta.methods.whole import allowed_targets
from delta.training.fit import Progress, placed, quiet
from delta.training.labels import disclose_labels
from delta.training.private_stage import Labelled
from delta.training.uploads import release_records

__all__ = ["check_method", "run_membership"]


def run_membership(
    bundle: Bundle,
    data: DataSplits,
    recipe: Recipe,
    settings: MembershipSettings = MembershipSettings(),
    *,
    allow: Collection[str] = (),
    progress: Progress = quiet,
) -> MembershipReport:
    """Attack the bundle's own models by thresholds, and retrained ones by thresholds and LiRA.

    Backbone and basis stay the bundle's throughout: what they remember of its training records shows only in the
    attacks on the bundle's own models.

    Args:
        bundle: of method `delta`.
        data: training records, whom the bundle may know, and test records, whom it does not.
        recipe: how its models were trained.
        settings: of the attacks.
        allow: import targets that the bundle may build.
        progress: told after every step.

    Raises:
        MethodError: the bundle is of another method.
        ConfigError: the data are not the bundle's in shape, or hold too few records.
    """
    check_method(bundle)
    if data.image_shape != bundle.manifest.input.shape:
        raise ConfigError(
            f"the bundle takes records of {bundle.manifest.input.shape}, the data have {data.image_shape}"
        )
    attack = _Attack(bundle, settings, recipe, allow, progress)
    pool = data.train
    if settings.pool is not None and settings.pool < len(pool):
        pool = pool.limited(max(settings.pool, len(pool.class_names)), seed=settings.seed)
    results = [
        *attack.own(recipe.members(data.train), data.test),
        *attack.cloud(pool),
        *attack.main(pool),
    ]
    few = min(result.curve.negatives for result in results)
    notes = list(recipe.notes)
    if few < 1000:
        notes.append(
            f"{few} non-members resolve no false-positive rate below {100 / few:.2g} %: 0.1 % takes 1,000"
        )
    notes.append("retrained main models learn from labels alone, without the whole model as their teacher")
    if attack.tap.noisy:
        notes.append(
            "the stored release is what the cloud alone has of a record; it knows anyway which ones it trained on"
        )
    return MembershipReport(tuple(results), tuple(notes), settings)


def check_method(bundle: Bundle) -> None:
    """Refuse a bundle without the two models.

    Raises:
        MethodError: it is of another method than `delta`.
    """
    if bundle.manifest.release is None:
        raise MethodError(
            f"membership is attacked in bundles of method 'delta', this one is of {bundle.manifest.method!r}; leave "
            "membership out of --attacks"
        )


class _Attack:
    """What the parts of a run share."""

    def __init__(
        self,
        bundle: Bundle,
        settings: MembershipSettings,
        recipe: Recipe,
        allow: Collection[str],
        progress: Progress,
    ) -> None:
        self.bundle, self.settings, self.progress = bundle, settings, progress
        self.config = recipe.config.model_copy(update={"device": settings.device})
        self.device = device_of(settings.device)
        self.allowed = allowed_targets(bundle, allow)
        self.tap = ReleaseTap(bundle, allow=allow)
        self.parts: PrivateParts = load_private_parts(bundle, allowed=self.allowed)
        self.mirror = bundle.manifest.input.shape[0] == 3
        self.releases = asks_releases(self.tap, draws=settings.draws, seed=settings.seed + 1)
        self.reads = asks_main(self.parts)

    def own(self, members: Dataset, others: Dataset) -> list[MembershipResult]:
        """Thresholds on the bundle's own models: its training records against test records."""
        x = torch.cat([self._x(members), self._x(others)])
        labels = torch.cat([members.labels, others.labels])
        known = torch.arange(len(labels)) < len(members)
        cloud = placed(load_cloud_model(self.bundle.cloud_part, allowed=self.allowed), self.device)
        main = self.parts.to(self.device).main
        found = []
        cases: tuple[tuple[Target, nn.Module, Ask], ...] = (
            ("cloud model", cloud, self.releases),
            ("main model", main, self.reads),
        )
        for target, model, ask in cases:
            signals = self._signals([model], x, labels, ask, stage=f"the bundle's {target}")
            found += self._thresholds(target, "bundle's", signals, known)
        return found

    def cloud(self, pool: Dataset) -> list[MembershipResult]:
        """A retrained cloud model: all attacks on simulated releases, and LiRA by the cloud itself."""
        records = Labelled(self._x(pool).cpu(), pool.labels, pool.ids, pool.subjects)
        key, seed = victim_key(self.settings.seed), self.settings.seed
        masks = shadow_masks(len(pool), shadows=self.settings.shadows, seed=seed)
        bits = release_records(self.parts, self.tap.release, records, key=key, device=self.device)
        told, _ = disclose_labels(
            pool.labels,
            records=pool.ids,
            subjects=pool.subjects,
            classes=len(pool.class_names),
            config=label_config(self.bundle),
            key=key,
        )
        models = train_cloud_shadows(
            self.bundle,
            bits,
            told,
            masks,
            config=self.config,
            seed=seed + 2,
            device=self.device,
            allowed=self.allowed,
            progress=self.progress,
        )
        x = records.x.to(self.device)
        found = self._all("cloud model", models, masks, x, pool.labels)
        if self.tap.noisy:
            signals = signals_of(models, bits.to(self.device), pool.labels, asks_stored())
            found.append(self._lira("cloud model", signals, masks, sees="the stored release"))
        return found

    def main(self, pool: Dataset) -> list[MembershipResult]:
        """A retrained main model: all attacks."""
        x, seed = self._x(pool), self.settings.seed
        masks = shadow_masks(len(pool), shadows=self.settings.shadows, seed=seed + 3)
        models = train_main_shadows(
            self.bundle,
            x,
            pool.labels,
            masks,
            self.reads,
            config=self.config,
            seed=seed + 4,
            progress=self.progress,
        )
        return self._all("main model", models, masks, x, pool.labels)

    def _all(
        self, target: Target, models: list[nn.Module], masks: Tensor, x: Tensor, labels: Tensor
    ) -> list[MembershipResult]:
        """Thresholds on the last model, and LiRA by means of the others."""
        ask = self.releases if target == "cloud model" else self.reads
        last = self._signals(models[-1:], x, labels, ask, stage=f"retrained {target}")
        others = signals_of(
            models[:-1], x, labels, ask, progress=self.progress, stage=f"shadows of the {target}"
        )
        joined = Signals(
            torch.cat([others.confidence, last.confidence]), last.loss, last.kept, draws=last.draws
        )
        sees: Sees = "simulated releases" if target == "cloud model" else "main input"
        return [
            *self._thresholds(target, "retrained", last, masks[-1]),
            self._lira(target, joined, masks, sees=sees),
        ]

    def _thresholds(
        self, target: Target, copy: Copy, signals: Signals, known: Tensor
    ) -> list[MembershipResult]:
        scores: dict[Name, Tensor] = {
            "label-only": label_only_scores(signals.kept[-1]),
            "loss": loss_scores(signals.loss[-1]),
        }
        sees: Sees = "simulated releases" if target == "cloud model" else "main input"
        return [
            self._result(target, copy, name, score, signals, known, sees=sees, shadows=0)
            for name, score in scores.items()
        ]

    def _lira(self, target: Target, signals: Signals, masks: Tensor, *, sees: Sees) -> MembershipResult:
        score = lira_scores(signals.confidence[-1], signals.confidence[:-1], masks[:-1])
        return self._result(
            target, "retrained", "lira", score, signals, masks[-1], sees=sees, shadows=len(masks) - 1
        )

    def _result(
        self,
        target: Target,
        copy: Copy,
        attack: Name,
        score: Tensor,
        signals: Signals,
        known: Tensor,
        *,
        sees: Sees,
        shadows: int,
    ) -> MembershipResult:
        return MembershipResult(
            target=target,
            copy=copy,
            attack=attack,
            sees=sees,
            curve=curve_of(score[known], score[~known]),
            draws=signals.draws,
            shadows=shadows,
            member_accuracy=signals.accuracy(-1, known),
            non_member_accuracy=signals.accuracy(-1, ~known),
        )

    def _signals(
        self, models: list[nn.Module], x: Tensor, labels: Tensor, ask: Ask, *, stage: str
    ) -> Signals:
        return signals_of(
            models,
            x,
            labels,
            ask,
            reach=self.settings.reach,
            mirror=self.mirror,
            progress=self.progress,
            stage=stage,
        )

    def _x(self, data: Dataset) -> Tensor:
        return self.bundle.manifest.input.preprocess(data.images).to(self.device)
