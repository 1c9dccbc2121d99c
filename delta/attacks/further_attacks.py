"""Running the further attacks of a run, tap by tap."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from delta.attacks.bag_tap import BagTap
from delta.attacks.further import Further
from delta.attacks.inference import Inferred, infer_attributes, infer_labels
from delta.attacks.linkability import Known, Linkability, check_enough, linkability
from delta.attacks.membership.recipe import Recipe, recipe_of
from delta.attacks.membership.report import MembershipReport, MembershipSettings
from delta.attacks.membership.run import check_method, run_membership
from delta.attacks.release_tap import ReleaseTap
from delta.attacks.settings import AttackRecords, AttackSettings
from delta.attacks.tap import Tap
from delta.bundle.store import Bundle
from delta.data.records import DataSplits
from delta.training.fit import Progress

__all__ = ["FurtherAttacks"]


class FurtherAttacks:
    """What is found tap by tap, and at the end of the models themselves.

    Args:
        bundle: the whole bundle.
        records: whose images are whose.
        settings: of the run.
        progress: told after every step.

    Raises:
        MethodError: membership is asked for of a bundle that has no such models.
        ConfigError: there are too few records.
    """

    def __init__(
        self, bundle: Bundle, records: AttackRecords, settings: AttackSettings, progress: Progress
    ) -> None:
        if "membership" in settings.attacks:
            check_method(bundle)
        if "linkability" in settings.attacks:
            check_enough(len(records.auxiliary), len(records.victims))
        self._bundle, self._records = bundle, records
        self._settings, self._progress = settings, progress
        self._labels: list[tuple[str, Inferred]] = []
        self._attributes: list[tuple[str, Inferred]] = []
        self._links: list[Linkability] = []
        self._membership: MembershipReport | None = None

    def attack(self, tap: Tap, x: Tensor, *, control: bool) -> None:
        """What can be read out of one look through a tap; records are linked through what is sent alone.

        Args:
            tap: what the attacker sees.
            x: the victims, preprocessed.
            control: whether nobody sends that.
        """
        asked, records, settings = self._settings.attacks, self._records, self._settings
        own = records.auxiliary if tap.in_loop else records.slow(settings)
        labels, spec = records.auxiliary_labels[: len(own)], self._bundle.manifest.input
        if "label-inference" in asked or "attributes" in asked:
            observed = tap.capture(x, records.ids, seed=settings.seed)
        if "label-inference" in asked:
            found = infer_labels(
                tap,
                own,
                labels,
                observed,
                records.labels,
                spec,
                classes=len(self._bundle.manifest.class_names),
                epochs=settings.epochs,
                seed=settings.seed,
                progress=self._progress,
            )
            self._labels.append((tap.name, found))
        if "attributes" in asked:
            answers = infer_attributes(
                tap,
                own,
                labels,
                observed,
                records.victims,
                records.labels,
                spec,
                class_names=self._bundle.manifest.class_names,
                epochs=settings.epochs,
                seed=settings.seed,
                progress=self._progress,
            )
            self._attributes += [(tap.name, answer) for answer in answers]
        if "linkability" in asked and not control:
            self._links.append(
                linkability(
                    BagTap(tap) if isinstance(tap, ReleaseTap) and tap.patch is not None else tap,
                    Known(own, labels.cpu(), tuple(f"own-{place}" for place in range(len(own)))),
                    Known(records.victims, records.labels, records.ids),
                    spec,
                    seed=settings.seed,
                    progress=self._progress,
                )
            )

    def infer_membership(self, data: DataSplits, recipe: Recipe | None, *, allow: Collection[str]) -> None:
        """Attack the models, if that was asked for."""
        settings = self._settings
        if "membership" not in settings.attacks:
            return
        self._membership = run_membership(
            self._bundle,
            data,
            recipe_of(self._bundle) if recipe is None else recipe,
            MembershipSettings(
                shadows=settings.shadows, pool=settings.pool, seed=settings.seed, device=settings.device
            ),
            allow=allow,
            progress=self._progress,
        )

    def findings(self) -> Further:
        """All of it."""
        return Further(
            membership=self._membership,
            labels=tuple(self._labels),
            attributes=tuple(self._attributes),
            links=tuple(self._links),
        )
