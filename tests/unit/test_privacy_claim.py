"""The claim: what is said, for whom, and when nothing may be said."""

import json

import pytest

from delta.errors import PrivacyParameterError
from delta.privacy.claim import claim_of
from delta.privacy.gaussian import sigma_for
from delta.privacy.ledger import Spent
from delta.release.config import (
    BasisConfig,
    Bounding,
    Component,
    CropConfig,
    InputSpec,
    MessageConfig,
    Provenance,
    ReleaseConfig,
)

PUBLIC = Provenance(kind="public")


def config(*, sigma, backbone=PUBLIC, clip_norm=1.0):
    free = Component(hash="0" * 64, provenance=Provenance(kind="data-independent"))
    return ReleaseConfig(
        input=InputSpec(shape=(1, 32, 32), mean=(0.0,), std=(1.0,)),
        ir_shape=(8, 32, 32),
        backbone=Component(hash="1" * 64, provenance=backbone),
        basis=BasisConfig(kind="pca", rank=2, component=free),
        crop=CropConfig(block=16, keep=8),
        message=MessageConfig(map="channel-mean", shape=(1, 32, 32), component=free),
        bounding=Bounding(clip_norm=clip_norm),
        sigma=sigma,
    )


SIGMA = sigma_for(epsilon=8.0, delta=1e-5, clip_norm=3.0)


def test_an_unconditional_claim():
    claim = claim_of(config(sigma=SIGMA, clip_norm=3.0))
    figures = claim.to_json()
    assert list(figures) == ["mu", "epsilon", "delta", "unit", "claim", "ceiling_bits"]
    assert figures["mu"] == pytest.approx(1.666, rel=1e-3)
    assert figures["epsilon"] == pytest.approx(8.0)
    assert figures["delta"] == 1e-5
    assert figures["unit"] == "per record, local, replace-one"
    assert figures["ceiling_bits"] == pytest.approx(0.5, rel=0.01)
    assert figures["claim"] == "each release is 1.666-GDP and (8, 1e-05)-DP, per record, local, replace-one"
    assert claim.person_level == "person level: not accounted"
    assert not any("no claim" in line for line in claim.lines())
    json.dumps(figures, allow_nan=False)


def test_no_noise_claims_nothing():
    claim = claim_of(config(sigma=None), labels="disclosed")
    assert claim.label == "empirical obfuscation"
    assert claim.to_json() == {
        "mu": None,
        "epsilon": None,
        "delta": None,
        "unit": "per record, local, replace-one",
        "claim": "none",
        "ceiling_bits": None,
    }
    assert "labels: disclosed to the cloud" in claim.lines()


def test_a_private_fit_leaves_its_people_out():
    claim = claim_of(config(sigma=SIGMA, backbone=Provenance(kind="private")))
    assert claim.claim.endswith("replace-one, for people with no record in the private fit of backbone")
    assert any("backbone" in line and "no claim" in line for line in claim.conditions)


def test_a_dp_fit_composes():
    fit = Provenance(kind="dp", epsilon=2.0, delta=1e-6)
    claim = claim_of(config(sigma=SIGMA, backbone=fit, clip_norm=3.0))
    assert claim.epsilon == pytest.approx(10.0)
    assert claim.delta == pytest.approx(1.1e-5)
    assert claim.mu == pytest.approx(1.666, rel=1e-3)
    assert any("basic composition" in line for line in claim.conditions)
    with pytest.raises(PrivacyParameterError, match="at least 1"):
        claim_of(config(sigma=SIGMA, backbone=Provenance(kind="dp", epsilon=1.0, delta=0.9)), delta=0.2)


def test_labels_of_randomised_response_are_joined():
    claim = claim_of(config(sigma=2.0), labels="randomized-response", label_epsilon=1.0)
    assert any("epsilon 1 each" in line and "jointly" in line for line in claim.conditions)
    with pytest.raises(PrivacyParameterError, match="label_epsilon"):
        claim_of(config(sigma=2.0), labels="randomized-response")
    with pytest.raises(PrivacyParameterError, match="label_epsilon"):
        claim_of(config(sigma=2.0), labels="disclosed", label_epsilon=1.0)


def test_the_person_level():
    spent = Spent(mu=2.0, joint_mu=2.0, releases=4)
    assert "2-GDP over 4 releases" in claim_of(config(sigma=2.0), person=spent).person_level
    unbounded = Spent(mu=float("inf"), joint_mu=float("inf"), releases=4)
    assert "no claim" in claim_of(config(sigma=None), person=unbounded).person_level


def test_a_wrong_delta_is_refused():
    with pytest.raises(PrivacyParameterError, match="delta must lie"):
        claim_of(config(sigma=2.0), delta=0.0)


def test_several_releases_of_a_record_compose_in_the_claim():
    sigma = sigma_for(epsilon=8, delta=1e-5, clip_norm=1.0)
    alone = claim_of(config(sigma=sigma))
    assert not any("releases: together" in line for line in alone.conditions)
    claim = claim_of(config(sigma=sigma), labels="randomized-response", label_epsilon=4.0, releases=4)
    (line,) = [line for line in claim.conditions if "releases: together" in line]
    mu = 2 * (2 / sigma)  # √4 of them
    assert f"4 releases: together {mu:.4g}-GDP" in line
    assert f"at most {mu**2 / (8 * 0.6931471805599453):.3g} bits" in line
    assert "with its label 5.3" in line
