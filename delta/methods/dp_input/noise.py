"""What a bundle of `dp-input` fixes about its noise, and what may be claimed of it."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from delta.bundle.manifest import Manifest
from delta.config import Strict, canonical_hash
from delta.errors import BundleError, PrivacyParameterError
from delta.privacy.ceiling import ceiling_bits
from delta.privacy.claim import UNIT, PrivacyClaim
from delta.privacy.gaussian import epsilon_of, mu_of, mu_of_sigma, sigma_for
from delta.release.config import Bounding, InputSpec

__all__ = ["InputNoise", "noise_of", "privacy_claim"]

_SLACK = 1e-9
"""Of μ: the formula's rounding differs from machine to machine."""
_LARGEST = 1e30
"""Of C and σ: noisy values must fit float32."""


class InputNoise(Strict):
    """An honest per-release (ε, δ), the bound it is given for, and the σ that makes it.

    Attributes:
        mechanism: names the keyed uniforms, what makes normals of them, the grid and the rounding.
        epsilon: of one release, above 0.
        delta: of one release.
        mu: 2C/σ, what (ε, δ) displays.
        sigma: standard deviation of the noise on each value of the bounded record.
        bounding: how a record is brought to L2 norm at most C.
        unit: of privacy.
    """

    mechanism: Literal["delta/gaussian-input/1"] = "delta/gaussian-input/1"
    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)
    mu: float = Field(gt=0)
    sigma: float = Field(gt=0, le=_LARGEST)
    bounding: Bounding
    unit: Literal["per record, local, replace-one"] = "per record, local, replace-one"

    @model_validator(mode="after")
    def _sigma_is_honest(self) -> Self:
        clip_norm = self.bounding.clip_norm
        if not 1 / _LARGEST <= clip_norm <= _LARGEST or self.sigma < 1 / _LARGEST:
            raise ValueError(f"clip_norm and sigma must lie between {1 / _LARGEST:g} and {_LARGEST:g}")
        mu = mu_of_sigma(sigma=self.sigma, clip_norm=clip_norm)
        if not math.isclose(mu, self.mu, rel_tol=_SLACK):
            raise ValueError(f"mu is {self.mu:.6g}, and 2C/sigma is {mu:.6g}")
        largest = mu_of(epsilon=self.epsilon, delta=self.delta)
        if mu > largest * (1 + _SLACK):
            raise ValueError(
                f"sigma {self.sigma:.6g} gives μ = {mu:.6g}, and epsilon {self.epsilon:g} at delta "
                f"{self.delta:g} allows {largest:.6g}; convert the model again"
            )
        return self

    @classmethod
    def of(cls, *, epsilon: float, delta: float, bounding: Bounding) -> Self:
        """The noise that makes a release (ε, δ)-DP under the analytic Gaussian mechanism.

        Raises:
            PrivacyParameterError: ε, δ or C is out of range.
        """
        clip_norm = bounding.clip_norm
        sigma = sigma_for(epsilon=epsilon, delta=delta, clip_norm=clip_norm)
        if not 1 / _LARGEST <= clip_norm <= _LARGEST or not 1 / _LARGEST <= sigma <= _LARGEST:
            raise PrivacyParameterError(
                f"clip_norm {clip_norm:g} needs noise of sigma {sigma:g}; both must lie between "
                f"{1 / _LARGEST:g} and {_LARGEST:g}"
            )
        mu = mu_of_sigma(sigma=sigma, clip_norm=clip_norm)
        return cls(epsilon=epsilon, delta=delta, mu=mu, sigma=sigma, bounding=bounding)

    def release_hash(self, input: InputSpec) -> str:
        """SHA-256 in hex of all that fixes a release, given record, id and key; no model is part of it."""
        fixed = {
            "mechanism": self.mechanism,
            "input": input.model_dump(mode="json"),
            "bounding": self.bounding.model_dump(mode="json"),
            "sigma": self.sigma,
        }
        return canonical_hash(fixed)


def noise_of(manifest: Manifest) -> InputNoise:
    """The noise that a manifest declares.

    Raises:
        BundleError: it declares none.
        ConfigError: it does, and its σ does not give its ε.
    """
    if "noise" not in manifest.settings:
        raise BundleError(
            "the manifest of method 'dp-input' declares no noise; convert the model again, with an epsilon"
        )
    return InputNoise.parse(manifest.settings["noise"], what="manifest: noise")


def privacy_claim(manifest: Manifest, *, delta: float | None = None) -> PrivacyClaim:
    """What a report may say about one release of one record.

    Args:
        manifest: of a bundle of `dp-input`.
        delta: δ at which ε displays μ; none takes the bundle's own.
    """
    noise = noise_of(manifest)
    at = noise.delta if delta is None else delta
    # The bundle's own ε is a bound that may be above the smallest one by rounding.
    epsilon = noise.epsilon if delta is None else epsilon_of(mu=noise.mu, delta=at)
    bounding = noise.bounding
    return PrivacyClaim(
        mu=noise.mu,
        epsilon=epsilon,
        delta=at,
        unit=UNIT,
        claim=f"each release is {noise.mu:.4g}-GDP and ({epsilon:.4g}, {at:.3g})-DP, {UNIT}",
        label="local differential privacy",
        ceiling_bits=ceiling_bits(mu=noise.mu),
        conditions=(
            f"records brought to norm {bounding.clip_norm:.4g} by {bounding.kind!r}, a constant that no private "
            "record has chosen",
            "given the noise key kept secret; order, counts and timing are not covered",
            "labels: disclosed to the cloud" if manifest.labels == "disclosed" else "labels: not sent",
            "each answer is the cloud's own, so the cloud knows it",
        ),
        person_level="person level: not accounted here; the ledger adds up the releases of a subject",
    )
