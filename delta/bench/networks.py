"""The network of a benchmark, and the methods' bundles for it."""

from __future__ import annotations

from collections.abc import Sequence

from delta.bench.contenders import BASELINE, Contender, Setup, bench_methods, contenders
from delta.decomposition.basis import synthetic_images
from delta.errors import ConfigError, UnknownMethodError
from delta.methods.whole import WholeModel
from delta.models.targets import default_arguments, full_target
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
            raise UnknownMethodError(f"unknown method {name!r}; there are {', '.join(known)}")
    if not names:
        raise ConfigError(f"--methods names no method; there are {', '.join(known)}")
    return [name for name in known if name in names or name == BASELINE]


def network_of(model: str, *, shape: tuple[int, int, int], classes: int, seed: int) -> tuple[WholeModel, str]:
    """A network with seeded weights, and how rows name it.

    Args:
        model: one of ours, or `package.module:callable`, which the caller trusts.
        shape: of a record.
        classes: of one of ours.
        seed: of weights and of the images that value ranges are taken from.

    Raises:
        ModelError: it does not build, or does not run on such records.
    """
    target = full_target(model)
    whole = WholeModel.build(
        target,
        input=input_spec(shape),
        arguments=default_arguments(target, classes=classes, shape=shape),
        seed=seed,
        calibration=synthetic_images(_CALIBRATION, shape, seed=seed),
    )
    return whole, f"{target.partition(':')[2]} {'x'.join(str(size) for size in shape)}"


def contenders_of(setup: Setup, methods: Sequence[str]) -> list[Contender]:
    """All contenders of a network; with `he` also a network that can run encrypted from end to end, and its baseline.

    Raises:
        ModelError: a method cannot run the network.
    """
    found = contenders(setup, methods)
    if "he" not in methods:
        return found
    whole, network = network_of(_ENCRYPTED, shape=_DIGITS, classes=10, seed=setup.seed)
    return [*found, *contenders(Setup(whole, network, he="network", seed=setup.seed), [BASELINE, "he"])]
