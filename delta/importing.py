"""Importing what a user names as `package.module:callable`, also from the folder that they are in."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from delta.errors import DeltaError

__all__ = ["import_callable", "main_stem", "one_line"]


def import_callable(target: str, *, error: type[DeltaError]) -> Callable[..., Any]:
    """The callable that `package.module:callable` names.

    Raises:
        DeltaError: of the kind `error`: the module cannot be imported, or has no such callable.
    """
    module_name, _, name = target.partition(":")
    try:
        module = _import_module(module_name)
    except Exception as reason:
        raise error(
            f"target {target!r}: module {module_name!r} cannot be imported ({one_line(reason)}); "
            "install it, or run from the folder that holds it"
        ) from reason
    found = getattr(module, name, None)
    if not callable(found):
        near = difflib.get_close_matches(name, [n for n in vars(module) if not n.startswith("_")], n=3)
        hint = (
            f"; did you mean {', '.join(near)}?" if near else f"; name a function or class of {module_name}"
        )
        raise error(f"target {target!r}: module {module_name!r} has no callable {name!r}{hint}")
    build: Callable[..., Any] = found
    return build


def _import_module(name: str) -> ModuleType:
    main = sys.modules.get("__main__")
    if main is not None and main_stem() == name:
        return main  # importing the running script again would run it twice
    folder = os.getcwd()
    top = name.partition(".")[0]
    if top in sys.modules or find_spec(top) is not None or folder in sys.path:
        return importlib.import_module(name)
    # An installed command has no current folder on its path, and that is where a user's model.py lies.
    sys.path.append(folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def main_stem() -> str:
    """The running script's file name without its suffix; empty where there is none."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(path).stem if path else ""


def one_line(error: BaseException) -> str:
    """Kind and first line of an error of somebody else's code."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
