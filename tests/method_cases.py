"""The cases of the Method contract: a bundle and records for every method; a new method adds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import tests.toy_method as toy
from delta.bundle.store import Bundle
from delta.methods.base import Method, RecordIds
from delta.methods.registry import method_class
from delta.methods.schema import CloudHalf
from delta.methods.stepping import StepPlan
from delta.release.noise import NoiseKey
from tests.he_digits import square_digits
from tests.trained import Trained

CPU = torch.device("cpu")
PLAN = StepPlan(steps=40, learning_rate=1e-3)


@dataclass(frozen=True)
class Case:
    """One method under test.

    Attributes:
        bundle: of the method.
        records: four that fit it.
        options: fresh ones for each instance of the private half.
        tolerance: by how much two answers to one question may differ; 0: not at all.
        deadline_s: by when an honest cloud surely has answered.
    """

    bundle: Bundle
    records: Tensor
    options: Callable[[], dict[str, Any]] = field(default=dict)
    tolerance: float = 0.0
    deadline_s: float = 10.0

    def make(self, bundle: Bundle | None = None) -> Method:
        whole = bundle or self.bundle
        return method_class(whole.manifest.method).from_bundle(whole, **self.options())

    def half(self) -> CloudHalf:
        return method_class(self.bundle.manifest.method).cloud_half(self.bundle.cloud_part, device=CPU)

    def ids(self, count: int) -> RecordIds:
        return RecordIds([f"record-{i}" for i in range(count)], [f"subject-{i % 2}" for i in range(count)])


def _whole(method: str, trained: Trained, **settings: Any) -> Bundle:
    """The trained whole model, under another method."""
    return method_class(method).bundle_of(trained.whole, **settings)


def _delta(trained: Trained, name: str) -> Case:
    return Case(trained.bundles[name], trained.x[:4], lambda: {"key": NoiseKey(bytes(range(32)))})


def _encrypted(trained: Trained) -> Bundle:
    """A network that runs encrypted from end to end: the whole model of the others cannot."""
    return method_class("he").bundle_of(square_digits(trained))


_CASES: dict[str, Callable[[Trained], Case]] = {
    "delta-none": lambda t: _delta(t, "none"),
    "delta-noise": lambda t: _delta(t, "noise"),
    "delta-principal": lambda t: _delta(t, "principal"),
    "delta-svd": lambda t: _delta(t, "svd"),
    "toy": lambda t: Case(toy.toy_bundle(), torch.arange(4 * 16, dtype=torch.float32).reshape(4, 1, 1, 16)),
    "private-only": lambda t: Case(_whole("private-only", t), t.x[:4], lambda: {"plan": PLAN}),
    "main-only": lambda t: Case(_whole("main-only", t), t.x[:4], lambda: {"plan": PLAN}),
    "slalom": lambda t: Case(_whole("slalom", t), t.x[:4]),
    "cloud-only": lambda t: Case(_whole("cloud-only", t, plan=PLAN), t.x[:4]),
    "he": lambda t: Case(_encrypted(t), t.x[:4], tolerance=2e-3, deadline_s=60.0),
    "he-last-layer": lambda t: Case(
        _whole("he", t, mode="last-layer"), t.x[:4], tolerance=2e-2, deadline_s=60.0
    ),
    "three-leg-race": lambda t: Case(_whole("three-leg-race", t), t.x[:4], lambda: {"plan": PLAN, "seed": 0}),
    "dp-input": lambda t: Case(
        _whole("dp-input", t, epsilon=8.0, plan=PLAN),
        t.x[:4],
        lambda: {"key": NoiseKey(bytes(range(32)))},
    ),
    "dp-sgd": lambda t: Case(
        _whole("dp-sgd", t, noise_multiplier=1.0, records=600, batch=16, steps=20), t.x[:4]
    ),
}
CASES = tuple(_CASES)
ONE_A_METHOD = tuple(name for name in CASES if not name.startswith("delta-") or name == "delta-noise")
"""One case of each method: what the slower tests run over."""

_made: dict[str, Case] = {}


def case_of(name: str, trained: Trained) -> Case:
    """A case by name, made once."""
    if name not in _made:
        _made[name] = _CASES[name](trained)
    return _made[name]
