"""The registry of methods: a new one is a new folder under `delta/methods/`, or a plug-in module."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from typing import TypeVar

import delta.methods
from delta.errors import DuplicateMethodError, UnknownMethodError
from delta.methods.base import Method

__all__ = ["load_plugin", "method_class", "method_names", "register_method"]

M = TypeVar("M", bound=type[Method])

_METHODS: dict[str, type[Method]] = {}


def register_method(cls: M) -> M:
    """Class decorator: enter a method under its `facts.name`.

    Raises:
        DuplicateMethodError: another class has that name.
    """
    name = cls.facts.name
    known = _METHODS.get(name)
    if known is not None and known is not cls:
        raise DuplicateMethodError(
            f"method {name!r} is registered already by {known.__module__}; choose another name"
        )
    _METHODS[name] = cls
    return cls


@cache
def _discover() -> None:
    for found in pkgutil.iter_modules(delta.methods.__path__):
        if found.ispkg:
            importlib.import_module(f"delta.methods.{found.name}")


def load_plugin(module: str) -> None:
    """Import a module that registers methods of its own.

    Raises:
        UnknownMethodError: the module cannot be imported.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UnknownMethodError(f"plug-in {module!r} cannot be imported: {error}") from error


def method_names() -> list[str]:
    """Names of all registered methods, sorted."""
    _discover()
    return sorted(_METHODS)


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UnknownMethodError: no method has that name.
    """
    _discover()
    try:
        return _METHODS[name]
    except KeyError:
        near = difflib.get_close_matches(name, _METHODS, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UnknownMethodError(
            f"unknown method {name!r}; {hint}registered are {', '.join(sorted(_METHODS))}"
        ) from None
