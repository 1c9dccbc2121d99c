"""What a point costs on the private side: timed on the CPU, beside the ways that need no cloud, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from delta.bench.interleaved import alternate, milliseconds, ratio, warm_allocator
from delta.bundle.store import Bundle
from delta.decomposition.basis import synthetic_images
from delta.errors import BundleError
from delta.frontier.grid import TimingPlan
from delta.methods.delta.parts import load_private_parts
from delta.methods.delta.private import DeltaMethod
from delta.models.macs import front_macs
from delta.models.main_model import build_main
from delta.release.noise import NoiseKey
from delta.training.private_stage import MainPath

__all__ = ["time_point"]


def time_point(bundle: Bundle, whole: nn.Module, *, plan: TimingPlan, main_only_reads: str) -> dict[str, Any]:
    """Time Delta's private half, the whole model, and a main-only model of the same private MACs, round by round.

    Delta is its real private half without a session: release, and main model. What a step costs does not depend on
    the values of weights, so the whole model may be untrained, and main-only is built anew. Records are seeded 1/f
    images, other ones in each round; all run as they are, as in `delta bench latency` without --runtime.

    Args:
        bundle: of the point.
        whole: the whole model.
        plan: how it is timed.
        main_only_reads: `image` or `principal`: what the best main-only model of the point reads.

    Returns:
        `private`, `private_only` and `main_only`, each with `median_ms`, `min_ms` and `max_ms` of a batch, and
        `speedup`: private-only over Delta, the median over the rounds, with `speedup_min` and `speedup_max`.

    Raises:
        BundleError: the bundle is not of method `delta`.
        ModelError: no light model fits the budget.
    """
    x = synthetic_images(plan.batch, bundle.manifest.input.shape, seed=0)
    trusted = {bundle.manifest.architecture.target}
    method = DeltaMethod.from_bundle(bundle, key=NoiseKey.generate(), allow=trusted)
    method.prepare(None)
    whole.eval()
    small = _main_only(bundle, reads=main_only_reads).eval()

    def of(run: Callable[[torch.Tensor], object]) -> Callable[[], object]:
        # Fresh content: a memo of the same records would answer for free.
        return lambda: run(x + torch.rand(()) * 1e-3)

    with _pinned(plan.threads), torch.inference_mode():
        warm_allocator()
        times = alternate(
            {"private": of(method.infer), "private_only": of(whole), "main_only": of(small)},
            rounds=plan.rounds,
            warmup=plan.warmup,
        )
    return {
        **{name: milliseconds(seconds) for name, seconds in times.items()},
        **ratio("speedup", times["private_only"], times["private"]),
    }


def _main_only(bundle: Bundle, *, reads: str) -> nn.Module:
    """The architecture that `delta.training.main_only` trains for these private MACs; its weights are seeded."""
    release = bundle.manifest.release
    if release is None:
        raise BundleError("a point of a frontier is a bundle of method 'delta'")
    parts = load_private_parts(bundle, allowed={bundle.manifest.architecture.target})
    shape, spent = release.input.shape, 0
    if reads == "principal":
        shape = parts.decomposer.main_shape
        record = torch.zeros(1, *release.input.shape)
        spent = front_macs(
            parts.backbone, parts.decomposer, record, k=parts.decomposer.rank, offload="principal"
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_main(
            layout="light",
            in_channels=shape[0],
            size=(shape[1], shape[2]),
            classes=len(bundle.manifest.class_names),
            max_macs=bundle.facts.private_macs - spent,
        )
    if reads == "principal":
        return MainPath(parts.backbone, parts.decomposer, model)
    return model


@contextmanager
def _pinned(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
