"""The optimisation attack within a run: what is searched for, from where, and with which prior."""

from __future__ import annotations

import time
from collections.abc import Collection
from functools import partial

from torch import Tensor

from delta.attacks.metrics import ssim
from delta.attacks.optimisation import Climb, Explanation, IrExplanation, ReleaseExplanation, climbed, tuned
from delta.attacks.release_tap import ReleaseTap
from delta.attacks.settings import AttackRecords, AttackSettings
from delta.attacks.tap import RandomBitsTap, RawIrTap, Tap, generator_on
from delta.bundle.store import Bundle
from delta.training.fit import Progress

__all__ = ["Search"]

_OWN = 16
"""Records of the attacker's own on which it chooses the prior."""


class Search:
    """Searches for the images behind observations of one bundle.

    Args:
        bundle: the whole bundle.
        records: whose images are whose.
        settings: of the run.
        allow: import targets that the bundle may build.
        progress: told after every step.
    """

    def __init__(
        self,
        bundle: Bundle,
        records: AttackRecords,
        settings: AttackSettings,
        allow: Collection[str],
        progress: Progress,
    ) -> None:
        self._bundle, self._records, self._settings = bundle, records, settings
        self._allow, self._progress = tuple(allow), progress
        self._chosen: dict[tuple[str, int], Climb] = {}

    def drawings(
        self, tap: Tap, observed: Tensor, looks: int, drawn: Tensor | None
    ) -> dict[str, tuple[Tensor, dict[str, float]]] | None:
        """Images of the first victims by where the search began, and what it took.

        Args:
            tap: what was seen.
            observed: of the victims, `[n, *shape]`.
            looks: observations behind each row.
            drawn: the decoder's drawings `[n, c, h, w]`, to begin with as well; none has only the mean image.

        Returns:
            None where nothing explains what the tap shows.
        """
        explain = self._explanation(tap)
        if explain is None:
            return None
        n = min(self._settings.searched, len(observed))
        mean = self._records.auxiliary.mean(0, keepdim=True)
        starts = {"mean image": mean.expand(n, -1, -1, -1)}
        if drawn is not None:
            starts["drawing"] = drawn[:n]
        preprocess = self._bundle.manifest.input.preprocess
        climb = self._prior(tap, explain, looks, mean)
        found = {}
        for name, start in starts.items():
            started = time.perf_counter()
            images = climbed(
                explain,
                observed[:n],
                start,
                preprocess=preprocess,
                climb=climb,
                looks=looks,
                told=partial(self._progress, f"search, {tap.name}, {looks} looks, from the {name}"),
            )
            effort = {
                "steps": climb.steps,
                "smooth": climb.smooth,
                "near": climb.near,
                "rate": climb.rate,
                "victims": n,
            }
            found[name] = (images, {**effort, "seconds": time.perf_counter() - started})
        return found

    def _prior(self, tap: Tap, explain: Explanation, looks: int, mean: Tensor) -> Climb:
        """The prior that does best on records of the attacker's own; on bits that know nothing, that of the release."""
        kind = ReleaseTap.name if isinstance(tap, RandomBitsTap) else tap.name
        if (kind, looks) not in self._chosen:
            images = self._records.auxiliary[:_OWN]
            x = self._bundle.manifest.input.preprocess(images)
            own = tap.simulate(x, looks=looks, generator=generator_on(x.device, self._settings.seed))
            self._chosen[kind, looks] = tuned(
                explain,
                own,
                images,
                mean.expand_as(images),
                ssim,
                preprocess=self._bundle.manifest.input.preprocess,
                climb=Climb(steps=self._settings.steps),
                looks=looks,
            )
        return self._chosen[kind, looks]

    def _explanation(self, tap: Tap) -> Explanation | None:
        release = self._bundle.manifest.release
        if release is None:
            return None
        if isinstance(tap, RawIrTap):
            return IrExplanation(self._bundle, allow=self._allow)
        if isinstance(tap, (ReleaseTap, RandomBitsTap)) and release.layout.kind == "kept":
            return ReleaseExplanation(self._bundle, allow=self._allow)
        return None
