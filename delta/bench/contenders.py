"""What a benchmark compares: a bundle of each method for one network, its weights seeded and not trained.

What a step costs does not depend on the values of the weights, so nothing is trained for a latency; accuracies are
other runs'. One method is an exception: the rank of `three-leg-race` adapts to what the layers see. Records are
seeded 1/f images, and its rows hold the MACs of the ranks that were used.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from delta.bench.zero_method import ZeroMethod, zero_bundle
from delta.bundle.store import Bundle
from delta.errors import ConfigError, MethodError, ModelError
from delta.methods.registry import method_class, method_names
from delta.methods.stepping import StepPlan
from delta.methods.whole import WholeModel
from delta.models.splitting import Parts, split
from delta.training.assemble import assemble_bundle
from delta.training.cloud_stage import train_cloud_stage
from delta.training.config import FitConfig, MainConfig, NoiseConfig, TrainConfig
from delta.training.private_stage import train_private_stage

__all__ = ["Contender", "Setup", "bench_methods", "contenders"]

_STEPS = 10_000  # more than any benchmark takes
_FEW = FitConfig(epochs=1, batch=16)
BASELINE = "private-only"
"""The method that every ratio is against."""


@dataclass(frozen=True)
class Setup:
    """What the contenders of one network have in common.

    Attributes:
        whole: the network, with records to calibrate on.
        network: how rows name it, such as `resnet18 3x32x32`.
        at: where Delta splits it.
        rank: r of Delta's basis.
        epsilon: of one release of Delta, and of `dp-input`; none: Delta releases without noise.
        private_macs: budgets of Delta's private path, and of main-only; none for the smallest sensible one.
        batch: of a training step, for what a bundle must know beforehand.
        he: what `he` runs encrypted.
        seed: of all weights.
    """

    whole: WholeModel
    network: str
    at: str = "layer1"
    rank: int = 8
    epsilon: float | None = 8.0
    private_macs: tuple[int | None, ...] = (None,)
    batch: int = 32
    he: Literal["last-layer", "network"] = "last-layer"
    seed: int = 0


@dataclass(frozen=True)
class Contender:
    """One bundle of one method.

    Attributes:
        key: names it among all of a benchmark; also the model's name at the cloud.
        method: registry name.
        network: as rows name it.
        bundle: of the method.
    """

    key: str
    method: str
    network: str
    bundle: Bundle


def bench_methods() -> list[str]:
    """Registered methods that infer, the baseline first."""
    ours = [n for n in method_names() if method_class(n).__module__.startswith("delta.methods.")]
    return [BASELINE, *(name for name in ours if name != BASELINE)]


def contenders(
    setup: Setup, methods: Sequence[str], *, skipped: dict[str, str] | None = None
) -> list[Contender]:
    """A bundle for each method, for each budget where the method takes one; with Delta also the way alone.

    Args:
        setup: the network.
        methods: registry names.
        skipped: where a method that cannot run the network is entered with the reason; none: it raises.

    Raises:
        ModelError: a method cannot run the network; the text says which part of it.
        MethodError: a method's package is not installed.
    """
    found: list[Contender] = []
    budgets: Sequence[int | None] = setup.private_macs
    # Delta first: without a budget main-only gets the MACs that Delta's private path came to.
    for method in sorted(methods, key=lambda name: name != "delta"):
        for budget in budgets if method in ("delta", "main-only") else (None,):
            key = f"{_slug(setup.network)}-{method}" + (f"-{budget}" if budget is not None else "")
            try:
                bundle = _bundle(setup, method, key, budget)
            except (ModelError, MethodError, ConfigError) as error:
                if skipped is None or method == BASELINE:
                    raise type(error)(f"method {method!r} cannot run {setup.network}: {error}") from None
                skipped[f"{method}, {setup.network}"] = str(error)
                continue
            if method == "delta" and budget is None:
                budgets = (bundle.facts.private_macs,)
            found.append(Contender(key, method, setup.network, bundle))
            if method == "delta" and bundle.manifest.release is not None:
                empty = f"{key}-way"
                size = bundle.manifest.release.payload_bytes
                way = zero_bundle(name=empty, payload_bytes=size, classes=setup.whole.classes)
                found.append(Contender(empty, ZeroMethod.facts.name, setup.network, way))
    order = [*methods, ZeroMethod.facts.name]
    return sorted(found, key=lambda one: order.index(one.method))


def _bundle(setup: Setup, method: str, key: str, budget: int | None) -> Bundle:
    whole = WholeModel(**{**vars(setup.whole), "name": key})
    if method == "delta":
        return _delta_bundle(setup, whole, budget)
    settings: dict[str, Any] = {}
    if method in ("cloud-only", "dp-input"):
        settings["plan"] = StepPlan()
    if method == "dp-input":
        if setup.epsilon is None:
            raise ConfigError("method 'dp-input' needs an ε; give --epsilon, or leave the method out")
        settings["epsilon"] = setup.epsilon
    if method == "main-only":
        settings |= {"private_macs": budget, "seed": setup.seed}
    if method == "he":
        settings["mode"] = setup.he
    if method == "dp-sgd":
        # What a step costs does not depend on the noise; what it may claim does.
        settings |= {
            "batch": setup.batch,
            "records": 100 * setup.batch,
            "steps": _STEPS,
            "noise_multiplier": 1.0,
        }
    return method_class(method).bundle_of(whole, **settings)


def _delta_bundle(setup: Setup, whole: WholeModel, budget: int | None) -> Bundle:
    """Both stages on a handful of generated records: every part is real, and none is good."""
    from delta.data.generated import load_generated

    parts = _parts(setup)
    shape = "x".join(str(size) for size in whole.input.shape)
    data = load_generated(f"generated:{whole.classes}x{shape}:{max(40, 5 * whole.classes)}", seed=setup.seed)
    config = TrainConfig(
        noise="none" if setup.epsilon is None else NoiseConfig(epsilon=setup.epsilon),
        seed=setup.seed,
        name=whole.name,
        rank=setup.rank,
        whole=None,
        main=MainConfig(private_macs=budget, distil=False),
        main_fit=_FEW,
        cloud_fit=_FEW,
        held_out=0.4,
        fusion="sum",
    )
    stage = train_private_stage(parts, data.train, config)
    cloud = train_cloud_stage(stage, config)
    return assemble_bundle(stage, cloud, config, class_names=whole.class_names, lineage={}, figures={})


def _parts(setup: Setup) -> Parts:
    architecture = setup.whole.architecture
    return split(
        copy.deepcopy(setup.whole.module),  # stage 1 would train it in place
        at=setup.at,
        example=torch.zeros(2, *setup.whole.input.shape),
        target=architecture.target,
        arguments=dict(architecture.arguments),
    )


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower()).strip("-")
