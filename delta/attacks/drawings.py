"""The reconstruction attacks of a run, tap by tap: decoder, conditional GAN and optimisation, scored alike."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from delta.attacks.cgan import L1, draw_samples, fit_cgan
from delta.attacks.classifier import train_judge
from delta.attacks.decoding import DecoderSettings, draw, fit_decoder
from delta.attacks.jigsaw import fit_jigsaw
from delta.attacks.metrics import ssim
from delta.attacks.release_tap import ReleaseTap
from delta.attacks.report import TapRow
from delta.attacks.scores import score_drawings
from delta.attacks.search import Search
from delta.attacks.settings import AttackRecords, AttackSettings, as_unit_interval
from delta.attacks.tap import RandomBitsTap, Tap
from delta.bundle.store import Bundle
from delta.training.fit import Progress

__all__ = ["Drawings"]

_GANS = (("cgan, adversarial alone", 0.0), ("cgan with an L1 term", L1))
"""The paper's loss, and what it gains from the pairs that the attacker has anyway."""


class Drawings:
    """Draws the victims and scores what was drawn.

    Args:
        bundle: the whole bundle.
        records: whose images are whose.
        settings: of the run.
        allow: import targets that the bundle may build.
        progress: told after every step.

    Attributes:
        rows: an attack on a tap each.
        floors: what needs no release.
        notes: what was left out, in words.
    """

    def __init__(
        self,
        bundle: Bundle,
        records: AttackRecords,
        settings: AttackSettings,
        allow: Collection[str],
        progress: Progress,
    ) -> None:
        self._input = bundle.manifest.input
        self._records, self._settings, self._progress = records, settings, progress
        self._search = Search(bundle, records, settings, allow, progress)
        self._judge = train_judge(
            records.auxiliary,
            records.auxiliary_labels,
            classes=len(bundle.manifest.class_names),
            epochs=settings.classifier_epochs,
            seed=settings.seed,
            progress=progress,
        )
        self.rows: list[TapRow] = []
        self.notes: list[str] = []
        mean = records.auxiliary.mean(0, keepdim=True).expand_as(records.victims)
        originals = self._judge.accuracy(records.victims, records.labels)
        self.floors: dict[str, dict[str, Any]] = {
            "mean_image": self._scored(mean),
            "originals": {"class_accuracy": originals},
        }

    def attack(self, tap: Tap, observed: Tensor, looks: int) -> Tensor | None:
        """Every attack that was asked for, on what a tap showed.

        Args:
            tap: what the attacker sees.
            observed: of the victims, `[n, *shape]`.
            looks: observations behind each row.

        Returns:
            The drawings `[n, c, h, w]` of the attack that drew all victims best; none where none drew them all.
        """
        trained: dict[str, Tensor] = {}
        if "decoder" in self._settings.attacks:
            decoder = self._decoder(tap, observed, looks)
            trained["decoder"] = decoder
        if "cgan" in self._settings.attacks:
            for name, l1 in _GANS:
                trained[name] = self._cgan(tap, observed, looks, name, l1)
        if "jigsaw" in self._settings.attacks and isinstance(tap, ReleaseTap):
            trained["jigsaw"] = self._jigsaw(tap, observed, looks)
        rows = {row.attack: row for row in self.rows[len(self.rows) - len(trained) :]}
        if "optimisation" in self._settings.attacks:
            self._optimise(tap, observed, looks, trained)
        best = max(trained, key=lambda name: rows[name].ssim, default=None)
        if best is None:
            return None
        if tap.name == RandomBitsTap.name:
            self.floors["random_bits"] = rows[best].scores
        return trained[best]

    def _decoder(self, tap: Tap, observed: Tensor, looks: int) -> Tensor:
        fitted = fit_decoder(
            tap,
            self._own(tap),
            self._input,
            looks=looks,
            settings=self._strength(),
            progress=self._progress,
            stage=f"decoder, {_seen(tap, looks)}",
        )
        drawn = draw(fitted.model, observed)
        self.rows.append(TapRow(tap.name, looks, self._scored(drawn), fitted.to_json()))
        return drawn

    def _cgan(self, tap: Tap, observed: Tensor, looks: int, name: str, l1: float) -> Tensor:
        fitted = fit_cgan(
            tap,
            self._own(tap),
            self._input,
            l1=l1,
            looks=looks,
            settings=self._strength(),
            progress=self._progress,
            stage=f"{name}, {_seen(tap, looks)}",
        )
        drawn = draw_samples(fitted.model, observed, seed=self._settings.seed)
        self.rows.append(TapRow(tap.name, looks, self._scored(drawn), fitted.to_json(), attack=name))
        return drawn

    def _jigsaw(self, tap: ReleaseTap, observed: Tensor, looks: int) -> Tensor:
        """Patches put back, and a decoder of what lies in its place then."""
        own, settings, records = self._own(tap), self._settings, self._records
        solver, effort = fit_jigsaw(
            tap,
            own,
            self._input,
            epochs=settings.epochs,
            batch=settings.batch,
            seed=settings.seed,
            progress=self._progress,
            stage=f"jigsaw, {_seen(tap, looks)}",
        )
        truth = tap.arrangement(self._input.preprocess(records.victims), records.ids, seed=settings.seed)
        found = solver.placement(observed, truth)
        self.notes.append(
            f"{tap.name}: the jigsaw attack put {found.placed:.1f} % of the patches in their places (by guessing "
            f"{found.chance:.1f} %); {found.bits:.1f} % of the bits are then right, {found.bits_before:.1f} % before"
        )
        fitted = fit_decoder(
            solver,
            own,
            self._input,
            looks=looks,
            settings=self._strength(),
            progress=self._progress,
            stage=f"decoder behind the jigsaw, {_seen(tap, looks)}",
        )
        drawn = draw(fitted.model, solver.solved(observed))
        seconds = effort["seconds"] + fitted.seconds
        effort = {**fitted.to_json(), **vars(found), "seconds": seconds}
        self.rows.append(TapRow(tap.name, looks, self._scored(drawn), effort, attack="jigsaw"))
        return drawn

    def _optimise(self, tap: Tap, observed: Tensor, looks: int, trained: dict[str, Tensor]) -> None:
        """From the mean image, and from the decoder's drawings where there are any."""
        found = self._search.drawings(tap, observed, looks, trained.get("decoder"))
        if found is None:
            self.notes.append(
                f"{tap.name}: the optimisation attack was left out; it explains an IR, or a release in its own layout"
            )
            return
        for start, (images, effort) in found.items():
            n = len(images)
            victims = self._records.victims[:n]
            others = {name: float(ssim(victims, drawn[:n]).mean()) for name, drawn in trained.items()}
            name = f"optimisation from the {start}"
            self.rows.append(TapRow(tap.name, looks, self._scored(images), effort, name, others))

    def _own(self, tap: Tap) -> Tensor:
        return self._records.auxiliary if tap.in_loop else self._records.slow(self._settings)

    def _strength(self) -> DecoderSettings:
        settings = self._settings
        return DecoderSettings(
            epochs=settings.epochs, width=settings.width, batch=settings.batch, seed=settings.seed
        )

    def _scored(self, drawn: Tensor) -> dict[str, Any]:
        """Every score of drawings of the first victims."""
        records, n = self._records, len(drawn)
        candidates = as_unit_interval(records.pool[: min(records.candidates)]).to(drawn.device)
        return score_drawings(records.victims[:n], drawn, records.labels[:n], self._judge, candidates)


def _seen(tap: Tap, looks: int) -> str:
    return f"{tap.name}, {looks} look{'s' if looks > 1 else ''}"
