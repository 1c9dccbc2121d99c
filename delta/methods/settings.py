"""Settings of a method as plain values, from a command line or a file: known to the method, and of its types."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from delta.config import explain
from delta.errors import ConfigError
from delta.methods.base import Method
from delta.methods.whole import refuse_settings

__all__ = ["converts", "known_settings", "option_names", "typed_settings"]

_KEYWORDS = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def converts(cls: type[Method]) -> bool:
    """Whether a method makes bundles from whole models: it has a `bundle_of` of its own."""
    return cls.bundle_of.__func__ is not Method.bundle_of.__func__  # type: ignore[attr-defined]


def known_settings(cls: type[Method]) -> dict[str, inspect.Parameter]:
    """The settings that a method's `bundle_of` names, beside the model."""
    parameters = inspect.signature(cls.bundle_of).parameters
    return {name: p for name, p in parameters.items() if p.kind in _KEYWORDS and name != "model"}


def option_names(cls: type[Method]) -> frozenset[str]:
    """The options that a method's private half names: what `from_bundle` may be given."""
    parameters = inspect.signature(cls.__init__).parameters
    return frozenset(
        name for name, p in parameters.items() if p.kind in _KEYWORDS and name not in ("self", "bundle")
    )


def typed_settings(cls: type[Method], given: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values in the types that `bundle_of` declares, such as a mapping for a `StepPlan`.

    Raises:
        ConfigError: the method has no such setting, or takes another type; all faults in one line.
    """
    known = known_settings(cls)
    refuse_settings(cls.facts.name, given.keys() - known.keys(), known=tuple(known))
    typed: dict[str, Any] = {}
    faults: list[str] = []
    for name, value in given.items():
        try:
            typed[name] = _adapter(cls, known[name]).validate_python(value)
        except ValidationError as error:
            faults.append(f"{name}: {explain(error).removeprefix('(top level): ')}")
    if faults:
        raise ConfigError(f"settings of method {cls.facts.name!r}: {'; '.join(faults)}")
    return typed


def _adapter(cls: type[Method], parameter: inspect.Parameter) -> TypeAdapter[Any]:
    """What checks one setting; anything goes where its annotation is not to be resolved."""
    hint: Any = parameter.annotation
    if isinstance(hint, str):
        hint = _resolved(hint, vars(sys.modules[cls.__module__]))
    elif hint is inspect.Parameter.empty:
        hint = Any
    try:
        return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))
    except PydanticUserError:  # a model brings a configuration of its own
        return TypeAdapter(hint)


def _resolved(annotation: str, names: dict[str, Any]) -> Any:  # noqa: ANN401
    """What an annotation of a method's own module stands for."""
    try:
        return eval(annotation, names)  # noqa: S307 - source code of the method, not input
    except NameError:
        return Any
