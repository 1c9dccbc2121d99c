"""The claim: what may be said of a release configuration, for whom, and under which conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from delta.errors import PrivacyParameterError
from delta.privacy.accountant import event_mu, label_mu
from delta.privacy.ceiling import ceiling_bits
from delta.privacy.events import release_event
from delta.privacy.gaussian import epsilon_of
from delta.privacy.ledger import Spent
from delta.release.config import Provenance, ReleaseConfig

__all__ = ["UNIT", "LabelDisclosure", "PrivacyClaim", "claim_of"]

UNIT = "per record, local, replace-one"
"""The unit of privacy of every release claim."""

LabelDisclosure = Literal["none", "disclosed", "randomized-response"]


@dataclass(frozen=True)
class PrivacyClaim:
    """What a report may say about one release of one record.

    Attributes:
        mu: 2C/σ of the release; none for `noise: none`.
        epsilon: at `delta`, for every record, those of a `dp` fit included; none for `noise: none`.
        delta: as above.
        unit: the unit of privacy.
        claim: one sentence, or `none`.
        label: `local differential privacy`, or `empirical obfuscation` for `noise: none`.
        ceiling_bits: the most bits that the release can carry about its record; none for `noise: none`.
        conditions: what the claim is given and whom it leaves out, a line each.
        person_level: what is known of whole persons, one line.
    """

    mu: float | None
    epsilon: float | None
    delta: float | None
    unit: str
    claim: str
    label: str
    ceiling_bits: float | None
    conditions: tuple[str, ...]
    person_level: str

    def to_json(self) -> dict[str, float | str | None]:
        """The figures of a report's `privacy` entry: mu, epsilon, delta, unit, claim and ceiling_bits."""
        return {
            "mu": self.mu,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "unit": self.unit,
            "claim": self.claim,
            "ceiling_bits": self.ceiling_bits,
        }

    def lines(self) -> tuple[str, ...]:
        """The whole claim for people to read, a line each."""
        head = [f"{self.label}, {self.unit}", f"claim: {self.claim}"]
        if self.ceiling_bits is not None:
            head.append(f"ceiling: a release carries at most {self.ceiling_bits:.3g} bits about its record")
        return (*head, *self.conditions, self.person_level)


def claim_of(
    config: ReleaseConfig,
    *,
    delta: float = 1e-5,
    labels: LabelDisclosure = "none",
    label_epsilon: float | None = None,
    person: Spent | None = None,
    releases: int = 1,
) -> PrivacyClaim:
    """The claim of a release configuration.

    Args:
        config: C, σ and the provenances decide the claim.
        delta: δ at which ε displays μ.
        labels: what the cloud learns of training labels.
        label_epsilon: ε of `randomized-response`, and only of that.
        person: what the person who has spent the most has spent, where subjects are known.
        releases: of one training record, all its views together.

    Raises:
        PrivacyParameterError: δ or the label's ε is out of range.
    """
    label_line = _label_line(config, labels, label_epsilon)
    person_line = _person_line(person, delta)
    event = release_event(sigma=config.sigma, clip_norm=config.bounding.clip_norm)
    if config.sigma is None:
        return PrivacyClaim(
            mu=None,
            epsilon=None,
            delta=None,
            unit=UNIT,
            claim="none",
            label="empirical obfuscation",
            ceiling_bits=None,
            conditions=(
                "no noise: nothing bounds what the cloud can infer from the released bits",
                label_line,
            ),
            person_level=person_line,
        )
    mu = event_mu(event)
    release_epsilon = epsilon_of(mu=mu, delta=delta)
    fits = [p for p in config.provenances.values() if p.kind == "dp"]
    epsilon = release_epsilon + sum(p.epsilon or 0.0 for p in fits)
    total_delta = delta + sum(p.delta or 0.0 for p in fits)
    if total_delta >= 1.0:
        raise PrivacyParameterError(
            f"delta of the release and its dp fits adds up to {total_delta:.4g}, at least 1"
        )
    private = [name for name, p in config.provenances.items() if p.kind == "private"]
    covers = f", for people with no record in the private fit of {', '.join(private)}" if private else ""
    return PrivacyClaim(
        mu=mu,
        epsilon=epsilon,
        delta=total_delta,
        unit=UNIT,
        claim=f"each release is {mu:.4g}-GDP and ({epsilon:.4g}, {total_delta:.3g})-DP, {UNIT}{covers}",
        label="local differential privacy",
        ceiling_bits=ceiling_bits(mu=mu),
        conditions=(
            "given the release configuration, the noise key kept secret, and what is disclosed; "
            "order, counts and timing are not covered",
            *_provenance_lines(config.provenances, mu, release_epsilon, delta),
            label_line,
            *_record_lines(mu, releases, label_epsilon, delta),
        ),
        person_level=person_line,
    )


def _record_lines(mu: float, releases: int, label_epsilon: float | None, delta: float) -> tuple[str, ...]:
    """What several releases of one record come to: they compose to μ√k (DESIGN, privacy 5)."""
    if releases == 1:
        return ()
    all_views = mu * releases**0.5
    line = (
        f"a training record has {releases} releases: together {all_views:.4g}-GDP, "
        f"({epsilon_of(mu=all_views, delta=delta):.4g}, {delta:.3g})-DP, at most {ceiling_bits(mu=all_views):.3g} bits"
    )
    if label_epsilon is not None:
        joint = (all_views**2 + label_mu(epsilon=label_epsilon) ** 2) ** 0.5
        line += f"; with its label {joint:.4g}-GDP"
    return (line,)


def _provenance_lines(
    provenances: dict[str, Provenance], mu: float, epsilon: float, delta: float
) -> tuple[str, ...]:
    lines = []
    for name, provenance in provenances.items():
        if provenance.kind == "private":
            lines.append(f"{name} fitted on private data: for people with a record in that fit, no claim")
        elif provenance.kind == "dp":
            lines.append(
                f"{name} fitted with ({provenance.epsilon:.4g}, {provenance.delta:.3g})-DP, taken as "
                f"replace-one; added to the release's {mu:.4g}-GDP = ({epsilon:.4g}, {delta:.3g})-DP by "
                "basic composition, as for people with a record in it"
            )
    return tuple(lines)


def _label_line(config: ReleaseConfig, labels: LabelDisclosure, epsilon: float | None) -> str:
    if (labels == "randomized-response") != (epsilon is not None):
        raise PrivacyParameterError(
            "labels 'randomized-response' need label_epsilon, and nothing else takes it"
        )
    if epsilon is None:
        return "labels: disclosed to the cloud" if labels == "disclosed" else "labels: not sent"
    mu = label_mu(epsilon=epsilon)
    line = f"labels: randomized response, epsilon {epsilon:.4g} each (μ_L = {mu:.4g})"
    if config.sigma is None:
        return f"{line}; the release beside them has no claim"
    release = event_mu(release_event(sigma=config.sigma, clip_norm=config.bounding.clip_norm))
    return f"{line}; release and label jointly {(release**2 + mu**2) ** 0.5:.4g}-GDP"


def _person_line(person: Spent | None, delta: float) -> str:
    if person is None:
        return "person level: not accounted"
    if person.joint_mu == float("inf"):
        return f"person level: no claim, releases without noise went out ({person.releases} in all)"
    return (
        f"person level: at most {person.joint_mu:.4g}-GDP over {person.releases} releases and "
        f"{person.labels} labels, ({epsilon_of(mu=person.joint_mu, delta=delta):.4g}, {delta:.3g})-DP"
    )
