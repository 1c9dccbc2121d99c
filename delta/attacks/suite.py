"""The attack suite: every attack on every tap of a bundle, beside the floors that need no release at all."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from delta.attacks.drawings import Drawings
from delta.attacks.further_attacks import FurtherAttacks
from delta.attacks.jigsaw import KEPT, check_jigsaw
from delta.attacks.label_leak import label_leak
from delta.attacks.matching import MatchResult, bag_scores, match_scores, patches_of
from delta.attacks.membership.recipe import Recipe
from delta.attacks.metrics import check_ssim
from delta.attacks.pictures import Example, example_of
from delta.attacks.release_tap import ReleaseTap
from delta.attacks.report import AttackReport, MatchRow
from delta.attacks.settings import DRAWING, SLOW_RECORDS, AttackRecords, AttackSettings, as_unit_interval
from delta.attacks.tap import RandomBitsTap, RawInputTap, RawIrTap, Tap
from delta.attacks.taps import tap_names, tap_of
from delta.bundle.store import Bundle
from delta.data.records import DataSplits
from delta.device import device_of
from delta.errors import ConfigError
from delta.training.fit import Progress, quiet

__all__ = ["CONTROLS", "run_attacks"]

CONTROLS = (RawIrTap.name, RawInputTap.name, RandomBitsTap.name)
"""Taps that nobody sends."""
_ASKED_AGAIN = 64
_BAG = 5800
"""Patches of observations, and of candidates, that are compared at a time: a quarter of a gigabyte."""


def run_attacks(
    bundle: Bundle,
    data: DataSplits,
    settings: AttackSettings,
    *,
    recipe: Recipe | None = None,
    allow: Collection[str] = (),
    progress: Progress = quiet,
) -> AttackReport:
    """Attack what a bundle's private half sends. The cloud is in this process, and nothing is released.

    The attacker has the bundle's private weights and the data's training records, and not the noise key; the
    victims are test records, under a noise key of their own.

    Args:
        bundle: the whole bundle.
        data: that it was made for.
        settings: what to do.
        recipe: how the bundle was trained, for membership inference; none for what the bundle itself says.
        allow: import targets that the bundle may build.
        progress: told after every step.

    Raises:
        ConfigError: the data do not fit, a tap is unknown, or torchmetrics is not installed.
        MethodError: the bundle's method sends nothing that these attacks can learn from.
    """
    started = time.perf_counter()
    device = device_of(settings.device)
    taps = [tap_of(bundle, name, allow=allow) for name in settings.taps or tap_names(bundle)]
    for tap in taps:
        if settings.patch is not None and isinstance(tap, ReleaseTap):
            patches_of(torch.zeros(1, *tap.shape), settings.patch)  # refused before any work
    _check_layout(bundle, settings)
    records = AttackRecords.of(bundle, data, settings, device)
    further = FurtherAttacks(bundle, records, settings, progress)
    drawings = None
    if set(DRAWING) & set(settings.attacks):
        check_ssim()
        drawings = Drawings(bundle, records, settings, allow, progress)
    run = _Run(bundle, records, settings, tuple(allow), drawings)
    for tap in taps:
        run.attack(tap)
        further.attack(tap, bundle.manifest.input.preprocess(records.victims), control=tap.name in CONTROLS)
    further.infer_membership(data, recipe, allow=allow)
    return AttackReport(
        bundle=bundle.manifest.name,
        method=bundle.manifest.method,
        data=data.name,
        settings=settings,
        release=_release_facts(bundle),
        auxiliary=len(records.auxiliary),
        victims=len(records.victims),
        taps=() if drawings is None else tuple(drawings.rows),
        matching=tuple(run.matching),
        labels=run.labels,
        floors={} if drawings is None else drawings.floors,
        further=further.findings(),
        examples=tuple(run.examples),
        notes=(*records.notes, *run.notes, *(() if drawings is None else drawings.notes)),
        seconds=time.perf_counter() - started,
    )


@dataclass
class _Run:
    """What is known of a run so far."""

    bundle: Bundle
    records: AttackRecords
    settings: AttackSettings
    allow: tuple[str, ...]
    drawings: Drawings | None
    matching: list[MatchRow] = field(default_factory=list)
    labels: dict[str, Any] | None = None
    examples: list[Example] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attack(self, tap: Tap) -> None:
        """Every attack that was asked for, on one tap."""
        control = tap.name in CONTROLS
        many = tap.noisy and tap.adds_up and not control
        looks_of = self.settings.looks(slow=not tap.in_loop) if many else (1,)
        if not tap.adds_up:
            self._say_what_a_shuffled_layout_leaves_out(tap)
        if not tap.noisy and not control and max(self.settings.observations, default=1) > 1:
            self.notes.append(
                f"{tap.name}: there is no noise, so every look at a record shows the same"
                + ("" if tap.adds_up else " patches")
            )
        x = self.bundle.manifest.input.preprocess(self.records.victims)
        best: Tensor | None = None
        for looks in looks_of:
            observed = tap.capture(x, self.records.ids, looks=looks, seed=self.settings.seed)
            if "matching" in self.settings.attacks:
                found = self._match(tap, observed, looks)
                best = found if best is None else best
            drawn = None if self.drawings is None else self.drawings.attack(tap, observed, looks)
            if drawn is not None and looks == looks_of[0] and not control:
                self._show(observed, drawn, best)
        if not control:
            self._ask_again(tap, x, max(looks_of))
            if "labels" in self.settings.attacks:
                self._guess_labels(tap, x)

    def _say_what_a_shuffled_layout_leaves_out(self, tap: Tap) -> None:
        asked = set(self.settings.attacks)
        if {"decoder", "cgan"} & asked and "jigsaw" not in asked:
            self.notes.append(
                f"{tap.name}: the layout is shuffled, and no attack put it together: add jigsaw to --attacks before "
                "you rest anything on these drawings"
            )
        if tap.noisy and max(self.settings.looks(slow=False)) > 1:
            self.notes.append(
                f"{tap.name}: each release of a record is in another order, and these attacks read one at a time: "
                "several looks are not tried, and would show more"
            )

    def _ask_again(self, tap: Tap, x: Tensor, looks: int) -> None:
        """Whether asking again about the same record shows anything new."""
        if looks < 2:
            return
        some, ids = x[:_ASKED_AGAIN], self.records.ids[:_ASKED_AGAIN]
        once = tap.capture(some, ids, looks=1, seed=self.settings.seed)
        again = tap.capture(some, ids, looks=looks, fresh=False, seed=self.settings.seed)
        same = bool(torch.allclose(once, again, rtol=1e-5, atol=1e-5))
        what = "the same every time, so asking again is worth nothing" if same else "otherwise each time"
        self.notes.append(f"{tap.name}: a record asked {looks} times under one id was sent {what}")

    def _guess_labels(self, tap: Tap, x: Tensor) -> None:
        one = tap.capture(x, self.records.ids, looks=1, seed=self.settings.seed)
        leak = label_leak(self.bundle, one, self.records.labels, allow=self.allow)
        if leak is None:
            self.notes.append(f"{tap.name}: the cloud half computes no logits, so it guesses no label")
        else:
            self.labels = leak.to_json()

    def _match(self, tap: Tap, observed: Tensor, looks: int) -> Tensor | None:
        """Every round of matching; returns the guesses of the first."""
        best = None
        for count in self._rounds(tap):
            victims = min(len(observed), count)
            seen, pool = observed[:victims], self.records.pool[:count]
            patch = (tap.patch or self.settings.patch) if isinstance(tap, ReleaseTap) else None
            if isinstance(tap, ReleaseTap) and patch is not None:
                result = self._match_bags(tap, seen, pool, looks, patch)
            else:
                result = match_scores(
                    seen.flatten(1),
                    pool,
                    torch.arange(victims),
                    lambda some, images: tap.scores(some, self._templates(tap, images), looks=looks),
                )
            self.matching.append(MatchRow(tap.name, looks, patch, result))
            best = result.best if best is None else best
        return best

    def _match_bags(self, tap: ReleaseTap, seen: Tensor, pool: Tensor, looks: int, patch: int) -> MatchResult:
        bags = patches_of(seen, patch)
        at_once = max(1, _BAG // bags.shape[1])
        mirrored = 4 if tap.patch is not None and tap.release.layout.mirror else 1

        def scores(some: Tensor, images: Tensor) -> Tensor:
            messages = self._templates(tap, images).view(-1, *tap.shape)
            return bag_scores(some, tap.bags(messages, patch), sigma=tap.release.sigma, looks=looks)

        truth = torch.arange(len(seen))
        return match_scores(bags, pool, truth, scores, batch=at_once, candidates=max(1, at_once // mirrored))

    def _rounds(self, tap: Tap) -> tuple[int, ...]:
        """Numbers of candidates: of controls the smallest alone, of slow taps no more than they can afford."""
        rounds = self.records.candidates
        if tap.name in CONTROLS:
            return (min(rounds),)
        if tap.in_loop:
            return rounds
        return tuple(dict.fromkeys(min(count, max(SLOW_RECORDS, min(rounds))) for count in rounds))

    def _templates(self, tap: Tap, images: Tensor) -> Tensor:
        """What the attacker computes of candidate images."""
        return tap.templates(self.bundle.manifest.input.preprocess(as_unit_interval(images)))

    def _show(self, observed: Tensor, drawn: Tensor, best: Tensor | None) -> None:
        for index in range(min(self.settings.examples, len(drawn))):
            matched = None if best is None or index >= len(best) else int(best[index]) == index
            self.examples.append(
                example_of(self.records.victims[index], observed[index], drawn[index], matched=matched)
            )


def _check_layout(bundle: Bundle, settings: AttackSettings) -> None:
    """Refuse what does not go with the release's layout.

    Raises:
        ConfigError: a jigsaw of a layout that is kept, or without scipy; other patches than the release's.
    """
    release = bundle.manifest.release
    patch = None if release is None else release.layout.patch
    if "jigsaw" in settings.attacks:
        if patch is None:
            raise ConfigError(KEPT)
        check_jigsaw()
    if patch is not None and settings.patch not in (None, patch):
        raise ConfigError(
            f"--patch {settings.patch} is not what this release is cut into; leave it out, or give {patch}"
        )


def _release_facts(bundle: Bundle) -> dict[str, Any] | None:
    release = bundle.manifest.release
    if release is None:
        return None
    return {
        "offload": release.offload,
        "message": release.message.map,
        "shape": list(release.message.shape),
        "sigma": release.sigma,
        "clip_norm": release.bounding.clip_norm,
        "layout": release.layout.text,
        "release_hash": bundle.manifest.release_hash,
    }
