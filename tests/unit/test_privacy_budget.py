"""A budget as a word of a command and as a configuration."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta.errors import ConfigError, PrivacyParameterError
from delta.privacy.budget import BudgetConfig, budget_of, budget_text, parse_budget
from delta.privacy.gaussian import epsilon_of, mu_of


def test_the_words_of_a_budget():
    assert parse_budget("unlimited") == parse_budget(" unlimited ") == "unlimited"
    assert parse_budget("mu=2.5") == 2.5
    assert parse_budget("epsilon=8") == mu_of(epsilon=8.0, delta=1e-5)
    assert parse_budget("epsilon = 8 , delta = 1e-6") == mu_of(epsilon=8.0, delta=1e-6)
    assert parse_budget("delta=1e-6,epsilon=8") == mu_of(epsilon=8.0, delta=1e-6)
    assert epsilon_of(mu=float(parse_budget("epsilon=8")), delta=1e-5) == pytest.approx(8.0)


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_a_budget_survives_being_written(mu):
    assert parse_budget(budget_text(mu)) == mu


def test_unlimited_survives_being_written():
    assert budget_text("unlimited") == "unlimited"


@pytest.mark.parametrize(
    "text",
    [
        *("", "8", "mu", "mu=", "mu=x", "mu=1,mu=2", "mu=1,delta=1e-5", "mu=1,epsilon=8", "delta=1e-5"),
        *("UNLIMITED", "unlimited,mu=2", "epsilon=8,", "epsilon=8;delta=1e-5", "sigma=1"),
        "epsilon=8,delta=1e-5,mu=1",
    ],
)
def test_other_words_are_refused_in_one_line(text):
    with pytest.raises(PrivacyParameterError, match="'epsilon=8,delta=1e-5', got") as refusal:
        parse_budget(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "text", ["mu=0", "mu=-1", "mu=nan", "mu=inf", "epsilon=0", "epsilon=nan", "epsilon=8,delta=1"]
)
def test_numbers_out_of_range_are_refused(text):
    with pytest.raises(PrivacyParameterError):
        parse_budget(text)


def test_a_budget_in_a_configuration():
    assert budget_of("unlimited") == "unlimited"
    assert budget_of(BudgetConfig(mu=2.5)) == 2.5
    assert budget_of(BudgetConfig(epsilon=8)) == parse_budget("epsilon=8")
    assert budget_of(BudgetConfig(epsilon=8, delta=1e-6)) == parse_budget("epsilon=8,delta=1e-6")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ({}, "exactly one"),
        ({"mu": 1.0, "epsilon": 8.0}, "exactly one"),
        ({"mu": 1.0, "delta": 1e-5}, "delta belongs to epsilon"),
        ({"mu": 0.0}, "mu"),
        ({"mu": math.inf}, "mu"),
        ({"epsilon": 8.0, "delta": 1.0}, "delta"),
        ({"sigma": 1.0}, "sigma"),
    ],
)
def test_wrong_configurations_are_refused(value, word):
    with pytest.raises(ConfigError, match=word):
        BudgetConfig.parse(value, what="budget")
