"""Import targets `package.module:callable`: how a manifest names a model without pickling it (I5)."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from delta.bundle.manifest import Architecture
from delta.errors import DeltaError, ModelError
from delta.importing import import_callable, main_stem, one_line
from delta.models.bag_model import bag_of_patches
from delta.models.resnet import resnet18, resnet34, resnet_small
from delta.models.square_net import he_cnn

__all__ = ["OURS", "build_target", "default_arguments", "full_target", "infer_target", "same_tensors"]

OURS: Mapping[str, Callable[..., nn.Module]] = {
    "delta.models:resnet18": resnet18,
    "delta.models:resnet34": resnet34,
    "delta.models:resnet_small": resnet_small,
    "delta.models:he_cnn": he_cnn,
    "delta.models:bag_of_patches": bag_of_patches,
}
"""The targets that anyone may ask for. A list, not a prefix: the modules of `delta.models` hold more names
than model builders, and a manifest may come from somebody else."""

_PATTERN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def full_target(name: str) -> str:
    """`resnet18` → `delta.models:resnet18`; a target `package.module:callable` stays as it is.

    Raises:
        ModelError: neither of the two; the message holds the nearest names.
    """
    if _PATTERN.fullmatch(name):
        return name
    ours = f"delta.models:{name}"
    if ours in OURS:
        return ours
    known = [target.partition(":")[2] for target in OURS]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
    raise ModelError(
        f"no model {name!r}: name one of ours ({', '.join(near)}) or your own as package.module:callable"
    )


def default_arguments(target: str, *, classes: int, shape: Sequence[int]) -> dict[str, Any]:
    """What a builder of ours takes from the data; a user's own knows by itself, and gets nothing.

    Args:
        target: `package.module:callable`.
        classes: logits a record.
        shape: `(channels, height, width)` of a record.
    """
    if target not in OURS:
        return {}
    channels, height, width = shape
    known: dict[str, Any] = {"classes": classes, "in_channels": channels}
    if min(height, width) >= 128:
        known["stem"] = "imagenet"
    taken = inspect.signature(OURS[target]).parameters
    return {name: value for name, value in known.items() if name in taken}


def build_target(
    target: str, arguments: Mapping[str, Any] | None = None, *, allowed: Collection[str] | None = None
) -> nn.Module:
    """Build the model that a target names.

    Args:
        target: `package.module:callable`.
        arguments: keyword arguments, plain JSON.
        allowed: targets besides ours that may be imported and called; none by default.

    Raises:
        ModelError: the target is malformed, not allowed, absent, fails, or returns no module.
    """
    if not _PATTERN.fullmatch(target):
        raise ModelError(f"target {target!r} is malformed; write package.module:callable")
    if target in OURS:
        build = OURS[target]
    elif target.startswith(("delta.models:", "delta.models.")):
        raise ModelError(f"no model {target!r}; ours are {', '.join(sorted(OURS))}")
    elif allowed is None or target not in allowed:
        raise ModelError(
            f"target {target!r} is not one of ours and not allowed here; "
            f"if you trust its code, give --allow {target}"
        )
    else:
        build = import_callable(target, error=ModelError)
    try:
        model = build(**dict(arguments or {}))
    except DeltaError:
        raise
    except Exception as error:
        raise ModelError(f"target {target!r} failed: {one_line(error)}; check its arguments") from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"target {target!r} returned {type(model).__name__}; it must return a torch.nn.Module"
        )
    return model


def infer_target(model: nn.Module) -> Architecture | None:
    """How a model can be built again, if that can be told from the instance.

    Ours carry their target. Another model has one if its class can be imported (a class of the running script
    counts under the script's file name) and, called without arguments, gives the same state names and shapes.

    Returns:
        The architecture, its `split_at` empty; none where the target must be given by hand.
    """
    target, arguments = _claimed_target(model)
    if not target:
        return None
    build = OURS.get(target, type(model))
    try:
        json.dumps(arguments)
        twin = _build_quietly(build, arguments)
    except Exception:  # any constructor may fail in any way without arguments
        return None
    if not isinstance(twin, type(model)) or not same_tensors(model, twin):
        return None
    return Architecture(target=target, arguments=arguments)


def _claimed_target(model: nn.Module) -> tuple[str, dict[str, Any]]:
    target, arguments = getattr(model, "target", ""), getattr(model, "arguments", {})
    if isinstance(target, str) and target in OURS and isinstance(arguments, dict):
        return target, arguments
    cls = type(model)
    module = main_stem() if cls.__module__ == "__main__" else cls.__module__
    owner = sys.modules.get(cls.__module__)
    target = f"{module}:{cls.__name__}"
    importable = getattr(owner, cls.__name__, None) is cls and not cls.__module__.startswith("torch.")
    return (target if module and importable and _PATTERN.fullmatch(target) else ""), {}


def _build_quietly(build: Callable[..., Any], arguments: Mapping[str, Any]) -> object:
    """Build on the meta device (no memory, no random numbers), else for real beside the caller's RNG."""
    try:
        with torch.device("meta"):
            return build(**arguments)
    except Exception:
        with torch.random.fork_rng(devices=[]):
            return build(**arguments)


def same_tensors(model: nn.Module, twin: nn.Module) -> bool:
    """Whether two models have the same state names, shapes and dtypes."""
    own = {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}
    other = {name: (t.shape, t.dtype) for name, t in twin.state_dict().items()}
    return own == other
