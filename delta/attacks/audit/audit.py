"""The audit of a mechanism: capture, score, bound, check, and the words for what was found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from delta.attacks.audit.bound import MuBound, bound_of, most_certifiable_mu, samples_needed
from delta.attacks.audit.checks import Check, Tally, bit_probabilities, log_ratio
from delta.attacks.audit.faults import Fault
from delta.attacks.audit.mechanism import audited_packets
from delta.attacks.audit.pair import Pair, exact_pair, release_of, searched_pair
from delta.bundle.store import Bundle
from delta.errors import ConfigError, PrivacyParameterError
from delta.methods.delta.cloud import DeltaCloud, load_cloud_model
from delta.methods.delta.parts import load_private_parts
from delta.methods.schema import CloudHalf
from delta.privacy.gaussian import epsilon_of, mu_of_sigma

__all__ = ["BOUND_SHARE", "CHECK_SHARE", "AuditResult", "Mechanism", "audit_bundle", "check_auditable"]

BOUND_SHARE, CHECK_SHARE = 0.8, 0.1
"""How the probability of a false alarm is shared out: to the bound, and to each of the two statistical checks."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Mechanism:
    """Another mechanism than ours, audited in its place.

    Attributes:
        name: in reports.
        epsilon: that it claims, nominally.
        mu: that this ε stands for.
        releaser: that carries it out.
    """

    name: str
    epsilon: float
    mu: float
    releaser: Fault


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    Attributes:
        epsilon: the claim, at `delta`.
        mu: the claim that is tested.
        delta: δ at which ε displays μ.
        bound: of the likelihood-ratio test.
        samples: records of each image.
        confidence: 1 − the probability that an honest mechanism is rejected or fails a check.
        checks: by name. `independence` of the noise of distinct records: a failure rejects the claim, as `bound`
            does; the `law` of the bits, and equal bytes at a `retry`: a failure alone is a defect that need not
            cost privacy. Of another mechanism than ours there are none.
        pair: what was told apart.
        fault: that was seeded.
        mechanism: what was audited.
        seed: of noise and order.
        seconds: that it took.
    """

    epsilon: float
    mu: float
    delta: float
    bound: MuBound
    samples: int
    confidence: float
    checks: dict[str, Check]
    pair: Pair
    fault: str | None
    mechanism: str
    seed: int
    seconds: float

    @property
    def rejected(self) -> bool:
        """Whether the claim is falsified, with the stated confidence."""
        return self.bound.mu > self.mu or not self._passed("independence")

    @property
    def deviates(self) -> bool:
        """Whether the mechanism is not the one described, though the claim itself may stand."""
        return not (self._passed("law") and self._passed("retry"))

    @property
    def verdict(self) -> str:
        """In words that never promise what a test cannot."""
        n = f"n = {self.samples:,} samples of each image"
        if self.bound.mu > self.mu:
            return (
                f"rejected: {n} certify μ ≥ {self.bound.mu:.3g}, above the claimed {self.mu:.3g} "
                f"(confidence {self.confidence:g})"
            )
        if self.rejected:
            return f"rejected: the noise of distinct records is not independent ({self.checks['independence'].what})"
        certified = f"they certify μ ≥ {self.bound.mu:.2g}"
        text = f"{n} cannot tell the release from one with μ = {self.mu:.3g}; {certified}. That is no proof."
        if self.deviates:
            found = self.checks["retry" if self._passed("law") else "law"].what
            return f"deviates: the mechanism is not as described ({found}); {text}"
        return f"not rejected: {text}"

    def to_json(self) -> dict[str, Any]:
        """The figures of a report."""
        return {
            "kind": "audit",
            "mechanism": self.mechanism,
            "claimed": {
                "epsilon": self.epsilon,
                "delta": self.delta,
                "mu": self.mu,
            },
            "mu_lower_bound": self.bound.mu,
            "epsilon_lower_bound": epsilon_of(mu=self.bound.mu, delta=self.delta),
            "samples": self.samples,
            "confidence": self.confidence,
            "rejected": self.rejected,
            "deviates": self.deviates,
            "fault": self.fault,
            "test": asdict(self.bound),
            "checks": {name: check.to_json() for name, check in self.checks.items()},
            "pair": self.pair.to_json(),
            "verdict": self.verdict,
            "seconds": round(self.seconds, 2),
            "seed": self.seed,
            "tee": "simulated",
        }

    def _passed(self, check: str) -> bool:
        return check not in self.checks or self.checks[check].passed


def audit_bundle(
    bundle: Bundle,
    *,
    samples: int,
    confidence: float = 0.95,
    delta: float = 1e-5,
    fault: Fault | None = None,
    other: Mechanism | None = None,
    searched: bool = True,
    seed: int = 0,
    allow: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> AuditResult:
    """Audit the release of a bundle.

    Args:
        bundle: whole, of the method `delta`, with noise.
        samples: records of each image.
        confidence: of everything that is said.
        delta: δ at which ε displays μ.
        fault: to seed into the audited copy.
        other: a mechanism to audit in the place of the bundle's, by its own claim.
        searched: whether the pair is searched through the backbone; else it is the transparent network's.
        seed: of noise, order and search.
        allow: import targets that the bundle may build.
        progress: told after every batch.

    Raises:
        PrivacyParameterError: the bundle has no noise, and so no claim.
        ConfigError: too few samples for the claim, or a confidence that is none.
    """
    release = release_of(bundle)
    if release.sigma is None:
        raise PrivacyParameterError(
            "this bundle is noise: none, which makes no claim; there is nothing to audit, so attack it instead"
        )
    claimed = mu_of_sigma(sigma=release.sigma, clip_norm=release.bounding.clip_norm)
    if other is not None:
        claimed, fault = other.mu, other.releaser
    check_auditable(claimed, samples=samples, confidence=confidence)
    own = {bundle.manifest.architecture.target} if bundle.made_here else set()
    parts = load_private_parts(bundle, allowed=own | set(allow))
    started = time.perf_counter()
    pair = searched_pair(parts, release, seed=seed) if searched else exact_pair(parts, release)
    half = None if searched else _cloud(bundle)
    weights, constant = log_ratio(pair.messages, release.sigma)
    tally = Tally(bit_probabilities(pair.messages, release.sigma))
    scores: tuple[list[Any], list[Any]] = ([], [])
    for captured in audited_packets(
        bundle, pair, samples=samples, seed=seed, fault=fault, allow=allow, half=half, progress=progress
    ):
        tally.add(captured)
        score = (captured.bits.numpy() + captured.again.numpy().astype(np.float64)) @ weights + 2 * constant
        first = captured.first.numpy()
        scores[0].append(score[first])
        scores[1].append(score[~first])
    alpha = 1 - confidence
    checks = {
        "independence": tally.independence(alpha=CHECK_SHARE * alpha),
        "law": tally.law(alpha=CHECK_SHARE * alpha),
        "retry": tally.retry(),
    }
    return AuditResult(
        epsilon=epsilon_of(mu=claimed, delta=delta) if other is None else other.epsilon,
        mu=claimed,
        delta=delta,
        bound=bound_of(np.concatenate(scores[0]), np.concatenate(scores[1]), alpha=BOUND_SHARE * alpha),
        samples=samples,
        confidence=confidence,
        checks=checks if other is None else {},
        pair=pair,
        fault=None if fault is None or other is not None else fault.name,
        mechanism="delta" if other is None else other.name,
        seed=seed,
        seconds=time.perf_counter() - started,
    )


def check_auditable(mu: float, *, samples: int, confidence: float) -> None:
    """Refuse an audit that could not reject its claim whatever it saw.

    Raises:
        ConfigError: naming the samples that it would take.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, got {confidence:g}; 0.95 is usual")
    if samples < 100:
        raise ConfigError(f"{samples} samples of each image are too few for any bound; give 100 or more")
    alpha = BOUND_SHARE * (1 - confidence)
    most = most_certifiable_mu(samples, alpha=alpha)
    if mu >= most:
        raise ConfigError(
            f"a claim of μ = {mu:.3g} is unauditable at n = {samples:,}: even without one error they certify "
            f"μ ≥ {most:.3g} at most; at least {samples_needed(mu, alpha=alpha):,} samples are needed"
        )


def _cloud(bundle: Bundle) -> CloudHalf:
    """The bundle's own cloud half."""
    release = release_of(bundle)
    model = load_cloud_model(bundle.cloud_part, allowed={bundle.manifest.architecture.target})
    return DeltaCloud(
        model,
        payload_bytes=release.payload_bytes,
        classes=len(bundle.manifest.class_names),
        device=torch.device("cpu"),
    )
