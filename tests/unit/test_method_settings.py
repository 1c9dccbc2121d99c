"""Settings of a method from plain values, and which options a private half names."""

import pytest

from delta.errors import ConfigError
from delta.methods.registry import method_class
from delta.methods.settings import converts, known_settings, option_names, typed_settings
from delta.methods.stepping import StepPlan


def test_values_get_the_types_that_the_method_declares():
    plan = typed_settings(method_class("cloud-only"), {"plan": {"steps": 3, "learning_rate": 0.01}})["plan"]
    assert plan == StepPlan(steps=3, learning_rate=0.01)
    assert typed_settings(method_class("cloud-only"), {"plan": None}) == {"plan": None}
    assert typed_settings(method_class("main-only"), {"private_macs": 5}) == {"private_macs": 5}
    assert typed_settings(method_class("private-only"), {}) == {}


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("private-only", {"seed": 1}, ["no setting seed", "takes none"]),
        ("cloud-only", {"plan": {"steps": 0}}, ["plan", "steps", "greater than or equal to 1"]),
        ("cloud-only", {"plan": {"colour": 1}}, ["plan", "colour"]),
        ("main-only", {"private_macs": 1.5, "seed": "x"}, ["private_macs", "seed", "integer"]),
        ("dp-input", {"epsilon": float("nan")}, ["epsilon", "finite"]),
        ("dp-input", {"bounding": "hard"}, ["bounding", "normalise"]),
    ],
)
def test_all_faults_are_in_one_line(method, given, words):
    with pytest.raises(ConfigError) as caught:
        typed_settings(method_class(method), given)
    assert "\n" not in str(caught.value)
    for word in (method, *words):
        assert word in str(caught.value)


def test_what_a_method_names():
    assert list(known_settings(method_class("main-only"))) == ["private_macs", "seed"]
    assert {"allow", "plan", "device"} <= option_names(method_class("private-only"))
    assert "bundle" not in option_names(method_class("private-only"))
    assert {"key", "ledger"} <= option_names(method_class("dp-input"))
    assert converts(method_class("slalom"))
    assert not converts(method_class("delta"))
