"""The one-run audit of a training: a model that saw noiseless bits is caught by heart, noise hides the coins."""

import pytest

from delta.attacks.audit.trained import audit_trained
from delta.errors import ConfigError


@pytest.mark.timeout(120)
def test_a_training_on_noiseless_bits_gives_its_canaries_away(digits):
    found = audit_trained(digits.train.limited(150, seed=0), epsilon=None, canaries=40, epochs=40)
    assert found.bound.guesses == 20
    assert found.accuracy > 80
    assert found.bound.correct >= 16
    assert found.bound.epsilon > 0.3
    assert not found.rejected  # nothing is claimed
    assert "no claim" in found.verdict
    assert found.to_json()["claimed"] == {"epsilon": None, "delta": 0.0, "mu": None}


def test_a_claim_beyond_the_canaries_is_unauditable(digits):
    found = audit_trained(digits.train.limited(150, seed=0), epsilon=8.0, canaries=20, epochs=1)
    assert not found.rejected
    assert found.most < 8.0
    assert found.verdict.startswith("unauditable")
    small = audit_trained(digits.train.limited(150, seed=0), epsilon=0.5, canaries=20, epochs=1)
    assert small.verdict.startswith("not rejected")
    assert "no proof" in small.verdict


def test_canaries_need_records(digits):
    with pytest.raises(ConfigError, match="300 records, got 150"):
        audit_trained(digits.train.limited(150, seed=0), epsilon=1.0, canaries=100)
