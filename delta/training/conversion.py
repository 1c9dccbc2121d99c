"""A bundle of any method from a whole model: trained if asked, converted, and measured."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from delta.bundle.store import Bundle
from delta.data.records import DataSplits
from delta.device import device_of
from delta.errors import ConfigError, MethodError
from delta.methods.base import Method
from delta.methods.registry import method_class
from delta.methods.settings import converts, known_settings, option_names, typed_settings
from delta.methods.stepping import StepPlan
from delta.methods.whole import WholeModel
from delta.training.batches import steps_of
from delta.training.config import FitConfig
from delta.training.fit import Progress, quiet
from delta.training.method_training import Measured, both_halves, measured, train_by_steps
from delta.training.private_stage import Labelled

__all__ = ["CALIBRATION", "Conversion", "Converted", "convert"]

CALIBRATION = 256
"""Training records at most that a method may look at to choose value ranges."""
_WHOLE = "private-only"


@dataclass(frozen=True)
class Conversion:
    """What is asked for.

    Attributes:
        method: registry name.
        settings: of the method, plain values; with epochs, `plan` holds those of the steps, such as
            `{learning_rate: 0.001}`.
        epochs: of training; 0 for none.
        batch: records a step.
        seed: of the order of training.
        device: of training and measuring.
    """

    method: str
    settings: Mapping[str, Any]
    epochs: int = 0
    batch: int = 64
    seed: int = 0
    device: str = "cpu"

    @property
    def cls(self) -> type[Method]:
        """Of the method.

        Raises:
            UnknownMethodError: there is none of that name.
        """
        return method_class(self.method)

    def check(self, *, data: bool) -> None:
        """Refuse what cannot be done, before data and model are there.

        Raises:
            UnknownMethodError: there is no such method.
            MethodError: its bundles do not come from whole models.
            ConfigError: a setting is unknown or of another type, the device is not there, or training has no data.
        """
        device_of(self.device)
        if not converts(self.cls):
            raise MethodError(
                f"a bundle of method {self.method!r} is not made from a whole model; train one: "
                "delta train --config configs/embedded.yaml"
            )
        typed_settings(self.cls, self._own_settings())
        if self.epochs and not data:
            raise ConfigError("training needs records; give --data, such as --data embedded")
        if self.epochs:
            self.plan(self.batch)

    def plan(self, records: int) -> StepPlan:
        """Of the training by steps.

        Raises:
            ConfigError: its settings are wrong.
        """
        given = self.settings.get("plan") or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"plan {given!r} is none; write plan={{learning_rate: 0.001}}")
        fit = FitConfig(epochs=self.epochs, batch=self.batch)
        return StepPlan.parse({**given, "steps": steps_of(records, fit)}, what="plan")

    def typed(self, plan: StepPlan | None, *, records: int = 0) -> dict[str, Any]:
        """The settings for `bundle_of`, with those of the training that it names itself.

        Args:
            plan: of the training by steps; none without one.
            records: to train on.
        """
        own = typed_settings(self.cls, self._own_settings())
        if plan is None:
            return own
        # A method whose noise depends on the training fixes all of it beforehand, as dp-sgd does.
        training = {"plan": plan, "records": records, "batch": self.batch, "steps": plan.steps}
        return {**{name: v for name, v in training.items() if name in known_settings(self.cls)}, **own}

    def _own_settings(self) -> dict[str, Any]:
        """Without the plan, where it is that of a training here."""
        facts = self.cls.facts
        steered = not facts.trains or "plan" in known_settings(self.cls) or "plan" in option_names(self.cls)
        return {
            name: v for name, v in self.settings.items() if name != "plan" or not (self.epochs and steered)
        }


@dataclass(frozen=True)
class Converted:
    """What came of it.

    Attributes:
        bundle: of the method; its figures hold the accuracies.
        trained: how, in a few words; empty where it was not.
        whole: how the model did by itself, all private; none without data, or where the method has trained it.
        measured: how the method did; none without data.
    """

    bundle: Bundle
    trained: str
    whole: Measured | None
    measured: Measured | None


def convert(
    model: WholeModel,
    asked: Conversion,
    *,
    data: DataSplits | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress = quiet,
) -> Converted:
    """Make a bundle of a method.

    A method that cannot train gets the model trained as a whole first, by the steps of private-only. Training and
    measuring run with both halves in this process, so nothing is sent. But a model trained on releases shows what it
    has learned from them to whoever it is given to: a method with releases gets the owner's key and ledger.

    Args:
        model: the whole model; its module is trained in place where the method cannot train by itself.
        asked: which method, and how.
        data: training and test records; none to convert only.
        options: of the private half that trains, such as `key` and `ledger`.
        progress: told of training and measuring.

    Raises:
        ConfigError: a setting is wrong, or the data do not fit the model.
        ModelError: the method cannot run the model; the text names the layer.
    """
    asked.check(data=data is not None)
    cls = asked.cls
    if data is None:
        return Converted(cls.bundle_of(model, **asked.typed(None)), "", None, None)
    _check_data(model, data)
    train, test = Labelled.of(data.train, model.input), Labelled.of(data.test, model.input)
    looked_at = data.train.limited(max(CALIBRATION, model.classes), seed=asked.seed)
    model = replace(
        model,
        class_names=data.class_names,
        calibration=Labelled.of(looked_at, model.input).x,
    )
    plan = asked.plan(len(train.y)) if asked.epochs else None
    settings = asked.typed(plan, records=len(train.y))
    # Before any training: whatever the method refuses, it refuses now.
    bundle = cls.bundle_of(model, **settings)
    trained = ""
    if plan is not None and cls.facts.trains:
        bundle = _trained(bundle, model, train, asked, {**(options or {}), "plan": plan}, progress)
        trained = "by the method's own steps"
    elif plan is not None:
        plain = method_class(_WHOLE).bundle_of(model)
        model.module.load_state_dict(_trained(plain, model, train, asked, {"plan": plan}, progress).private)
        bundle = cls.bundle_of(model, **settings)
        trained = "as a whole on the private side, before it was converted"
    whole = None
    if not (trained and cls.facts.trains) and asked.method != _WHOLE:
        plain = method_class(_WHOLE).bundle_of(model)
        whole = _measured(plain, model, test, asked, progress, "measuring the whole model")
    found = _measured(bundle, model, test, asked, progress, "measuring")
    figures = {asked.method: found.accuracy, **({} if whole is None else {"whole": whole.accuracy})}
    return Converted(_labelled(bundle, data, asked, figures), trained, whole, found)


def _check_data(model: WholeModel, data: DataSplits) -> None:
    if data.image_shape != model.input.shape:
        shape = "x".join(str(size) for size in data.image_shape)
        raise ConfigError(
            f"the model takes records of {model.input.shape}, data set {data.name!r} has {data.image_shape}; "
            f"give --input {shape}, or other data"
        )
    if len(data.class_names) != model.classes:
        raise ConfigError(
            f"the model has {model.classes} classes, data set {data.name!r} has {len(data.class_names)}; give "
            "a model of as many, or other data"
        )


def _trained(
    bundle: Bundle,
    model: WholeModel,
    data: Labelled,
    asked: Conversion,
    options: Mapping[str, Any],
    progress: Progress,
) -> Bundle:
    """The bundle after its own training; its cloud half only answers then."""
    fit = FitConfig(epochs=asked.epochs, batch=asked.batch)
    with both_halves(bundle, device=device_of(asked.device), allow=_allow(model), options=options) as method:
        train_by_steps(method, data, fit, seed=asked.seed, progress=progress)
        after = method.trained()
    manifest = after.manifest
    if (
        "plan" in manifest.settings
    ):  # labels stay as declared: the weights that the cloud gets were fitted on them
        others = {name: value for name, value in manifest.settings.items() if name != "plan"}
        after = replace(after, manifest=manifest.resealed(settings=others))
    return after


def _measured(
    bundle: Bundle, model: WholeModel, data: Labelled, asked: Conversion, progress: Progress, stage: str
) -> Measured:
    with both_halves(bundle, device=device_of(asked.device), allow=_allow(model)) as method:
        return measured(method, data, progress=progress, stage=stage)


def _allow(model: WholeModel) -> Collection[str]:
    """The model is the caller's own."""
    return (model.architecture.target,)


def _labelled(bundle: Bundle, data: DataSplits, asked: Conversion, figures: dict[str, float]) -> Bundle:
    """The bundle with how it came about: names and counts only, since the cloud reads them."""
    lineage = {
        **bundle.manifest.lineage,
        "data": data.name,
        "epochs": str(asked.epochs),
        "seed": str(asked.seed),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return replace(
        bundle,
        manifest=bundle.manifest.resealed(lineage=lineage),
        facts=bundle.facts.model_copy(update={"figures": {**bundle.facts.figures, **figures}}),
    )
