"""What a run of the attacks found, as figures, rows of a table and one sentence."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from delta.attacks.further import Further
from delta.attacks.matching import MatchResult
from delta.attacks.pictures import Example
from delta.attacks.settings import AttackSettings

__all__ = ["AttackReport", "MatchRow", "TapRow", "strongest_of"]

_CONTROLS = ("raw-ir", "raw-input", "random-bits")
_STRONG = 0.9


@dataclass(frozen=True)
class TapRow:
    """Drawings from one tap.

    Attributes:
        tap: its name.
        looks: observations a record, each under fresh noise.
        scores: see `delta.attacks.scores`.
        effort: of a decoder or GAN epochs, seconds, parameters and training loss; of a search steps, seconds, weights
            of the prior and victims.
        attack: `decoder`; `cgan` and its loss; or `optimisation` and where it began.
        same_records: of a search, which takes the first victims alone: SSIM of the other attacks' drawings of those.
    """

    tap: str
    looks: int
    scores: dict[str, Any]
    effort: dict[str, float]
    attack: str = "decoder"
    same_records: dict[str, float] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What made the drawings: `decoder`, `cgan` or `search`."""
        kind = self.attack.split()[0].rstrip(",")
        return "search" if kind == "optimisation" else kind

    @property
    def ssim(self) -> float:
        """Mean over the records drawn."""
        return float(self.scores["ssim"])

    def to_json(self) -> dict[str, Any]:
        """The figures."""
        return {
            "tap": self.tap,
            "attack": self.attack,
            "looks": self.looks,
            "fresh": self.looks > 1,
            **self.scores,
            self.kind: self.effort,
            **({"same_records": self.same_records} if self.same_records else {}),
        }


def strongest_of(rows: Iterable[TapRow]) -> TapRow | None:
    """The drawing with the highest SSIM.

    A search takes fewer victims, and those may be easier ones: it counts only where it draws them better than the
    best of the other attacks, with as many looks, draws those very records.
    """
    found = list(rows)
    fair = []
    for row in found:
        others = [r for r in found if r.looks == row.looks and r.attack in row.same_records]
        best = max(others, key=lambda r: r.ssim, default=None)
        if best is None or row.ssim > row.same_records[best.attack]:
            fair.append(row)
    return max(fair, key=lambda row: row.ssim, default=None)


@dataclass(frozen=True)
class MatchRow:
    """One round of candidate matching; `patch` is the size of the patches of a layout taken as shuffled."""

    tap: str
    looks: int
    patch: int | None
    result: MatchResult

    def to_json(self) -> dict[str, Any]:
        """The figures."""
        return {
            "tap": self.tap,
            "looks": self.looks,
            "fresh": self.looks > 1,
            "patch": self.patch,
            **self.result.to_json(),
        }


@dataclass(frozen=True)
class AttackReport:
    """All of it; see `delta.attacks.suite.run_attacks`."""

    bundle: str
    method: str
    data: str
    settings: AttackSettings
    release: dict[str, Any] | None
    auxiliary: int
    victims: int
    taps: tuple[TapRow, ...]
    matching: tuple[MatchRow, ...]
    labels: dict[str, Any] | None
    floors: dict[str, dict[str, Any]]
    further: Further
    examples: tuple[Example, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def floor(self) -> float | None:
        """SSIM that needs no release: the better of the mean image and what is drawn of random bits."""
        found = [scores["ssim"] for scores in self.floors.values() if "ssim" in scores]
        return max(found) if found else None

    @property
    def strongest(self) -> TapRow | None:
        """The best drawing of what leaves, controls left out."""
        return strongest_of(row for row in self.taps if row.tap not in _CONTROLS)

    def strongest_by_tap(self) -> list[dict[str, Any]]:
        """Of each tap the attack that draws best."""
        taps = dict.fromkeys(row.tap for row in self.taps)
        best = [strongest_of(r for r in self.taps if r.tap == tap) for tap in taps]
        return [
            {
                "tap": row.tap,
                "attack": row.attack,
                "looks": row.looks,
                "ssim": row.ssim,
                "victims": int(row.effort.get("victims", self.victims)),
            }
            for row in best
            if row is not None
        ]

    def verdict(self) -> str:
        """In plain words: what was got out of what leaves, and that this is no proof of what can be got."""
        return " ".join(self._sentences())

    def _sentences(self) -> Iterator[str]:
        for row in sorted(
            (r for r in self.matching if r.tap not in _CONTROLS),
            key=lambda r: (r.looks, r.result.candidates),
        )[:1]:
            yield (
                f"Of {row.result.candidates:,} candidate images, the right one scores highest for "
                f"{row.result.top1:.1f} % of the records (chance {100 / row.result.candidates:.2g} %)."
            )
        best, floor = self.strongest, self.floor
        if best is not None and floor is not None:
            looks = "" if best.looks == 1 else f" from {best.looks} releases of a record"
            yield (
                f"The strongest attack tried ({best.attack}) draws the images at SSIM {best.ssim:.2f}{looks} "
                f"(floor {floor:.2f}: what can be drawn with no release)."
            )
        control = self._unprotected(best)
        if control is not None and control.ssim < _STRONG:
            yield (
                f"From unprotected values the same attack reaches {control.ssim:.2f} alone: it is too weak to say how "
                "little leaks; train it longer, wider or on more records."
            )
        if self.labels is not None:
            yield (
                f"The cloud guesses the label of {self.labels['cloud_accuracy']:.1f} % of the records by itself "
                f"(prior {self.labels['prior']:.1f} %)."
            )
        yield "Another attack may do better: what these did not get is no proof that it is safe."

    def _unprotected(self, best: TapRow | None) -> TapRow | None:
        """What an attack draws from values that nothing protects; the strongest one there where none was sent."""
        rows = [row for row in self.taps if row.tap in ("raw-ir", "raw-input")]
        same = [row for row in rows if best is None or row.attack == best.attack]
        return strongest_of(same)

    def to_json(self) -> dict[str, Any]:
        """The figures; pictures only where they were asked for."""
        device = self.settings.device
        return {
            "kind": "attack",
            "bundle": self.bundle,
            "method": self.method,
            "data": self.data,
            "seed": self.settings.seed,
            "settings": self.settings.model_dump(mode="json"),
            "release": self.release,
            "attacker": {
                "knows": "mechanism, private weights and the training records; not the noise key",
                "auxiliary_records": self.auxiliary,
            },
            "victims": self.victims,
            "taps": [row.to_json() for row in self.taps],
            "strongest": self.strongest_by_tap(),
            "floors": self.floors,
            "matching": [row.to_json() for row in self.matching],
            "labels": self.labels,
            **self.further.to_json(),
            "examples": [one.to_json() for one in self.examples],
            "notes": list(self.notes),
            "verdict": self.verdict(),
            "seconds": self.seconds,
            "environment": {
                "torch": torch.__version__,
                "python": platform.python_version(),
                "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
            },
            "tee": "simulated",
        }
