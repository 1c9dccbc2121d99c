"""What a run of the attacks found, as figures, rows of a table and one sentence."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from delta.attacks.further import Further
from delta.attacks.matching import MatchResult
from delta.attacks.pictures import Example
from delta.attacks.settings import AttackSettings

__all__ = ["AttackReport", "MatchRow", "TapRow"]

_CONTROLS = ("raw-ir", "raw-input", "random-bits")
_STRONG = 0.9


@dataclass(frozen=True)
class TapRow:
    """Drawings from one tap.

    Attributes:
        tap: its name.
        looks: observations a record, each under fresh noise.
        scores: see `delta.attacks.scores`.
        effort: of a decoder epochs, seconds, parameters and training loss; of a search steps, seconds, weights of
            the prior and victims.
        attack: `decoder`, or `optimisation` and where it began.
    """

    tap: str
    looks: int
    scores: dict[str, Any]
    effort: dict[str, float]
    attack: str = "decoder"

    def to_json(self) -> dict[str, Any]:
        """The figures."""
        return {
            "tap": self.tap,
            "attack": self.attack,
            "looks": self.looks,
            "fresh": self.looks > 1,
            **self.scores,
            "decoder" if self.attack == "decoder" else "search": self.effort,
        }


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
        """SSIM that needs no release: the better of the mean image and a decoder of random bits."""
        found = [scores["ssim"] for scores in self.floors.values() if "ssim" in scores]
        return max(found) if found else None

    @property
    def strongest(self) -> TapRow | None:
        """The best drawing of what leaves, controls left out."""
        sent = [row for row in self.taps if row.tap not in _CONTROLS]
        return max(sent, key=lambda row: float(row.scores["ssim"]), default=None)

    def _strongest(self) -> list[dict[str, Any]]:
        """Of each tap the attack that draws best."""
        best: dict[str, TapRow] = {}
        for row in self.taps:
            if row.tap not in best or row.scores["ssim"] > best[row.tap].scores["ssim"]:
                best[row.tap] = row
        return [
            {"tap": row.tap, "attack": row.attack, "looks": row.looks, "ssim": row.scores["ssim"]}
            for row in best.values()
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
                f"The strongest attack tried draws the images at SSIM {best.scores['ssim']:.2f}{looks} "
                f"(floor {floor:.2f}: what can be drawn with no release)."
            )
        control = max(
            (r for r in self.taps if r.tap in ("raw-ir", "raw-input") and r.attack == "decoder"),
            key=lambda row: float(row.scores["ssim"]),
            default=None,
        )
        if control is not None and control.scores["ssim"] < _STRONG:
            yield (
                f"From unprotected values the same decoder reaches {control.scores['ssim']:.2f} alone: it is too weak "
                "to say how little leaks; train it longer, wider or on more records."
            )
        if self.labels is not None:
            yield (
                f"The cloud guesses the label of {self.labels['cloud_accuracy']:.1f} % of the records by itself "
                f"(prior {self.labels['prior']:.1f} %)."
            )
        yield "Another attack may do better: what these did not get is no proof that it is safe."

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
            "strongest": self._strongest(),
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
