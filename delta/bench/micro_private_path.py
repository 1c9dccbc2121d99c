"""Micro-benchmark of Delta's private path by parts, and of what runtimes make of main models and whole models.

ResNet-18 at 3×32×32 cut at `layer1`, a `pca` basis, the residual as the offloaded stream, k = 1; weights are
seeded and not trained. One thread; the candidates in turn within one run, so that ratios survive a busy machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from delta.bench.interleaved import Figures, alternate, milliseconds, one_thread, ratio, warm_allocator
from delta.decomposition.basis import pca_basis, synthetic_images
from delta.decomposition.decomposer import Decomposer
from delta.errors import ConfigError
from delta.models.main_model import build_main
from delta.models.resnet import resnet18
from delta.models.runtime import RUNTIMES, Runner, Runtime, check_runtime
from delta.models.splitting import split
from delta.release.bounding import normalise
from delta.release.components import component_hash, computation_hash
from delta.release.config import (
    BasisConfig,
    Component,
    CropConfig,
    InputSpec,
    MessageConfig,
    Provenance,
    ReleaseConfig,
)
from delta.release.ids import RecordIds, identities_of
from delta.release.mechanism import one_bit
from delta.release.message import MessageMap, message_in_parts
from delta.release.noise import NoiseKey
from delta.release.packing import pack_bits
from delta.release.releaser import Releaser, backbone_passes

__all__ = ["measure_private_path", "measure_runtimes", "usable_runtimes"]

SHAPE, BLOCK, KEEP, SIGMA, CLASSES = (3, 32, 32), 16, 8, 2.16, 10
BUDGETS = (2_000_000, 15_000_000, 50_000_000)


def measure_private_path(*, rounds: int = 15, warmup: int = 3, batch: int = 32, rank: int = 8) -> Figures:
    """Time the parts of one release of a batch.

    Returns:
        By part, milliseconds `median_ms`, `min_ms`, `max_ms`, and `of_release`, the share of the whole release:
        `release` (all of it, noise with σ = 2.16 included), `backbone`, `backbone_and_message` (the same with
        decomposition and message), both as the release runs them, in passes whose IR stays in the cache, and
        `one_pass` (`backbone_and_message` with all records at once; `speedup` of the passes over it), `digests`,
        `bounding`, `noise`, `bits`, `names`, and `main_2M` (a light main model of 2 M MACs, beside the release).
    """
    with one_thread(), torch.inference_mode():
        warm_allocator()
        parts = _Path(rank)
        x = synthetic_images(batch, SHAPE, 0)
        times = alternate(parts.candidates(x), rounds=rounds, warmup=warmup)
    figures = {name: milliseconds(values) for name, values in times.items()}
    for name in figures:
        if name != "release":
            figures[name] |= ratio("of_release", times[name], times["release"])
    figures["one_pass"] |= ratio("speedup", times["one_pass"], times["backbone_and_message"])
    return figures


def measure_runtimes(
    *,
    rounds: int = 15,
    warmup: int = 3,
    batches: Sequence[int] = (1, 32),
    ranks: Sequence[int] = (8, 16),
    budgets: Sequence[int] = BUDGETS,
    runtimes: Sequence[Runtime] | None = None,
    whole: bool = True,
) -> Figures:
    """Time light main models, which read `ranks` channels of 16×16, and the whole ResNet-18 under each runtime.

    Args:
        rounds: timed rounds; each times every runtime once.
        warmup: rounds before them that do not count.
        batches: records a call.
        ranks: channels of the main models' inputs.
        budgets: of the main models, MACs a record.
        runtimes: `eager` among them; none for those that work here.
        whole: whether the whole model is timed too.

    Returns:
        By `model, batch, runtime`: milliseconds, `speedup` over eager as the median of the rounds, with `_min` and
        `_max`, and `error` of the logits.
    """
    names = tuple(runtimes) if runtimes is not None else usable_runtimes()
    models: dict[str, tuple[nn.Module, tuple[int, int, int]]] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for rank in ranks:
            for budget in budgets:
                main = build_main(
                    layout="light", in_channels=rank, size=(16, 16), classes=CLASSES, max_macs=budget
                )
                models[f"main {budget / 1e6:g}M, {rank} channels"] = (main, (rank, 16, 16))
        if whole:
            models["whole resnet18"] = (resnet18(classes=CLASSES), SHAPE)
    figures: Figures = {}
    with one_thread():
        warm_allocator()
        for name, (module, shape) in models.items():
            module.eval().requires_grad_(False)
            runners = {how: Runner(module, how, example=torch.zeros(1, *shape)) for how in names}
            for batch in batches:
                figures |= _compared(f"{name}, batch {batch}", runners, batch, shape, rounds, warmup)
    return figures


def usable_runtimes() -> tuple[Runtime, ...]:
    """All of them, but the compiled ones only where there is a compiler."""
    usable = []
    for how in RUNTIMES:
        with suppress(ConfigError):
            usable.append(check_runtime(how, "cpu"))
    return tuple(usable)


def _compared(
    name: str,
    runners: dict[Runtime, Runner],
    batch: int,
    shape: tuple[int, int, int],
    rounds: int,
    warmup: int,
) -> Figures:
    x = synthetic_images(batch, shape, 0)
    candidates: dict[str, Callable[[], object]] = {how: _call(runner, x) for how, runner in runners.items()}
    times = alternate(candidates, rounds=rounds, warmup=warmup)
    return {
        f"{name}, {how}": milliseconds(times[how])
        | ratio("speedup", times["eager"], times[how])
        | {"error": runner.error}
        for how, runner in runners.items()
    }


def _call(runner: Runner, x: Tensor) -> Callable[[], object]:
    return lambda: runner(x)


class _Path:
    """The private modules and a releaser over them."""

    def __init__(self, rank: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            parts = split(
                "delta.models:resnet18",
                at="layer1",
                example=torch.zeros(2, *SHAPE),
                arguments={"classes": CLASSES},
            )
            self.main = build_main(
                layout="light", in_channels=rank, size=(16, 16), classes=CLASSES, max_macs=BUDGETS[0]
            )
        self.main.eval().requires_grad_(False)
        self.backbone = parts.backbone.eval().requires_grad_(False)
        channels, height, width = self.ir_shape = parts.ir_shape
        self.decomposer = Decomposer(
            channels=channels,
            height=height,
            width=width,
            rank=rank,
            block=BLOCK,
            keep=KEEP,
            kind="pca",
            basis=pca_basis(self.backbone(synthetic_images(64, SHAPE, 1)), rank),
        )
        self.message = MessageMap("channel-mean", channels=channels)
        self.key = NoiseKey(bytes(range(32)))
        self.config = self._config()
        self.releaser = Releaser(
            self.config,
            backbone=self.backbone,
            decomposer=self.decomposer,
            message=self.message,
            key=self.key,
            memo=None,
        )

    def _config(self) -> ReleaseConfig:
        known = Provenance(kind="data-independent", note="seeded and not trained")

        def component(digest: str) -> Component:
            return Component(hash=digest, provenance=known)

        return ReleaseConfig(
            input=InputSpec(shape=SHAPE, mean=(0.0,) * 3, std=(1.0,) * 3),
            ir_shape=self.ir_shape,
            backbone=component(computation_hash(self.backbone)),
            basis=BasisConfig(
                kind="pca",
                rank=self.decomposer.rank,
                component=component(component_hash(self.decomposer.state_dict())),
            ),
            crop=CropConfig(block=BLOCK, keep=KEEP),
            message=MessageConfig(
                map="channel-mean",
                shape=(1, *self.ir_shape[1:]),
                component=component(component_hash(self.message.state_dict())),
            ),
            sigma=SIGMA,
        )

    def candidates(self, x: Tensor) -> dict[str, Callable[[], object]]:
        """Each part, on what the parts before it made of records `x`."""
        ids = RecordIds([f"record-{i}" for i in range(len(x))])
        passes = backbone_passes(len(x), ir_shape=self.ir_shape, device=x.device)
        main_input, message = self._message(x, 1)
        bounded = normalise(message, 1.0).flatten(1)
        identities = identities_of(
            x, ids, release_hash=self.config.release_hash, mechanism=self.config.mechanism
        )

        def noise() -> Tensor:
            return self.key.batch_uniforms(identities, bounded.shape[1])

        uniforms = noise()
        return {
            "release": lambda: self.releaser.release(x, ids),
            "backbone": lambda: [self.backbone(few) for few in torch.tensor_split(x, passes)],
            "backbone_and_message": lambda: self._message(x, passes),
            "one_pass": lambda: self._message(x, 1),
            "digests": lambda: identities_of(x, ids, release_hash="", mechanism=""),
            "bounding": lambda: normalise(message, 1.0),
            "noise": noise,
            "bits": lambda: pack_bits(one_bit(bounded, sigma=SIGMA, uniforms=uniforms).view(message.shape)),
            "names": lambda: [self.key.release_id(one) for one in identities],
            "main_2M": lambda: self.main(main_input),
        }

    def _message(self, x: Tensor, passes: int) -> tuple[Tensor, Tensor]:
        return message_in_parts(
            (self.backbone(few) for few in torch.tensor_split(x, passes)),
            decomposer=self.decomposer,
            message=self.message,
            offload="residual",
        )
