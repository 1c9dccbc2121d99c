"""What membership inference found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from delta.attacks.membership.curves import Curve
from delta.attacks.membership.lira import FEWEST
from delta.config import Strict

__all__ = [
    "TARGETS",
    "Copy",
    "MembershipReport",
    "MembershipResult",
    "MembershipSettings",
    "Name",
    "Sees",
    "Target",
]

Target = Literal["cloud model", "main model"]
Copy = Literal["bundle's", "retrained"]
Name = Literal["label-only", "loss", "lira"]
Sees = Literal["simulated releases", "the stored release", "main input"]

TARGETS: tuple[Target, ...] = ("cloud model", "main model")


class MembershipSettings(Strict):
    """How membership is inferred.

    Attributes:
        shadows: models that LiRA is calibrated on, beside the one that it attacks.
        pool: training records that retrained models draw their halves from; none for all.
        draws: simulated releases a candidate, averaged; one without noise.
        reach: of the shifts of the label-only attack, pixels.
        seed: of halves, weights, orders and noise.
        device: where it all runs.
    """

    shadows: int = Field(default=16, ge=FEWEST, le=1024)
    pool: int | None = Field(default=None, ge=8)
    draws: int = Field(default=8, ge=1, le=1000)
    reach: int = Field(default=2, ge=0, le=16)
    seed: int = Field(default=0, ge=0)
    device: str = "cpu"


@dataclass(frozen=True)
class MembershipResult:
    """One attack on one model.

    Attributes:
        target: which of the two models.
        copy: the bundle's own, or one retrained on a random half of the pool, whose members and non-members differ
            in nothing else.
        attack: `label-only`, `loss` or `lira`.
        sees: what the attacker puts to the model.
        curve: how well it tells members.
        draws: noise a candidate.
        shadows: models besides the target; 0 where the attack needs none.
        member_accuracy: percent of members that the model gets right.
        non_member_accuracy: percent of the others.
    """

    target: Target
    copy: Copy
    attack: Name
    sees: Sees
    curve: Curve
    draws: int
    shadows: int
    member_accuracy: float
    non_member_accuracy: float

    def to_json(self) -> dict[str, Any]:
        """The figures."""
        return {
            "target": self.target,
            "copy": self.copy,
            "attack": self.attack,
            "sees": self.sees,
            "draws": self.draws,
            "shadows": self.shadows,
            **self.curve.to_json(),
            "members": self.curve.positives,
            "non_members": self.curve.negatives,
            "member_accuracy": self.member_accuracy,
            "non_member_accuracy": self.non_member_accuracy,
        }


@dataclass(frozen=True)
class MembershipReport:
    """All attacks.

    Attributes:
        results: one an attack and model.
        notes: what the reader must know of how the models came about.
        settings: of the run.
    """

    results: tuple[MembershipResult, ...]
    notes: tuple[str, ...]
    settings: MembershipSettings

    def strongest(self, target: Target) -> MembershipResult:
        """The attack on a model with the highest lower end of its AUC's interval.

        The cloud's own with stored releases is none of them: it knows anyway which ones it has trained on.
        """
        others = [r for r in self.results if r.target == target and r.sees != "the stored release"]
        return max(others, key=lambda r: r.curve.interval[0])

    def verdict(self) -> list[str]:
        """A line a model, in words that promise nothing."""
        return [_line(self.strongest(target)) for target in TARGETS]

    def to_json(self) -> list[dict[str, Any]]:
        """One entry an attack."""
        return [{**result.to_json(), "seed": self.settings.seed} for result in self.results]


def _line(best: MembershipResult) -> str:
    low, high = best.curve.interval
    caught = best.curve.caught[-1]
    found = (
        f"AUC {best.curve.auc:.3f} ({low:.3f} to {high:.3f}), {100 * caught.tpr:.1f} % of members caught at "
        f"{100 * caught.fpr:g} % false alarms"
    )
    if best.curve.better_than_guessing:
        return (
            f"Who was in the training data can partly be told from the {best.target}: {best.attack} reaches {found}; "
            "another attack may do better."
        )
    return (
        f"No attack tried told members of the {best.target} from others beyond chance ({best.attack}: {found}); "
        "that is no proof, another attack may do better."
    )
