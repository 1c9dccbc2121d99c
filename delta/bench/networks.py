"""The network of a benchmark, and the methods' bundles for it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from delta.bench.contenders import BASELINE, Contender, Setup, bench_methods, contenders
from delta.decomposition.basis import synthetic_images
from delta.errors import ConfigError, UnknownMethodError
from delta.methods.whole import WholeModel
from delta.models.targets import OURS, default_arguments, full_target
from delta.models.weights import load_weights
from delta.training.private_stage import input_spec

__all__ = ["chosen_methods", "contenders_of", "network_of"]

_CALIBRATION = 16
_ENCRYPTED, _DIGITS = "he_cnn", (1, 32, 32)


def chosen_methods(text: str) -> list[str]:
    """`all`, or names with commas between; the baseline is always among them.

    Raises:
        UnknownMethodError: a name that no method has.
    """
    known = bench_methods()
    if text == "all":
        return known
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2, cutoff=0.5) or known
            raise UnknownMethodError(f"unknown method {name!r}; did you mean {' or '.join(near)}?")
    if not names:
        raise ConfigError(f"--methods names no method; there are {', '.join(known)}")
    return [name for name in known if name in names or name == BASELINE]


def network_of(
    model: str,
    *,
    shape: tuple[int, int, int],
    classes: int | None,
    seed: int,
    arguments: Mapping[str, Any] | None = None,
    weights: Path | None = None,
) -> tuple[WholeModel, str]:
    """A network, and how rows name it.

    Args:
        model: one of ours, or `package.module:callable`, which the caller trusts.
        shape: of a record.
        classes: of one of ours, 10 by default; a user's own builder knows its own.
        seed: of weights and of the images that value ranges are taken from.
        arguments: of the builder, beside shape and classes.
        weights: a safetensors file; none for seeded weights.

    Raises:
        ConfigError: classes for a user's own model.
        ModelError: it does not build, does not run on such records, or the weights do not fit.
    """
    target = full_target(model)
    if classes is not None and target not in OURS:
        raise ConfigError("--classes is for our models; your own builder knows its classes")
    known = default_arguments(target, classes=classes or 10, shape=shape)
    whole = WholeModel.build(
        target,
        input=input_spec(shape),
        arguments={**known, **(arguments or {})},
        seed=seed,
        calibration=synthetic_images(_CALIBRATION, shape, seed=seed),
    )
    if weights is not None:
        load_weights(whole.module, weights)
    return whole, f"{target.partition(':')[2]} {'x'.join(str(size) for size in shape)}"


def contenders_of(
    setup: Setup, methods: Sequence[str], *, skipped: dict[str, str] | None = None
) -> list[Contender]:
    """All contenders of a network; with `he` also a network that can run encrypted from end to end, and its baseline.

    Args:
        setup: the network.
        methods: registry names.
        skipped: where a method that cannot run the network is entered with the reason; none: it raises.

    Raises:
        ModelError: a method cannot run the network.
        MethodError: its package is not installed.
    """
    if setup.whole.architecture.target == full_target(_ENCRYPTED):
        return contenders(replace(setup, he="network"), methods, skipped=skipped)
    found = contenders(setup, methods, skipped=skipped)
    if "he" not in methods:
        return found
    whole, network = network_of(_ENCRYPTED, shape=_DIGITS, classes=10, seed=setup.seed)
    encrypted = Setup(whole, network, he="network", seed=setup.seed)
    return [*found, *contenders(encrypted, [BASELINE, "he"], skipped=skipped)]
