"""Micro-benchmark of the private side's own work: decomposition and release, against the stem before them.

Everything is timed on one thread within one run, the candidates in turn (A B A B ...), and compared round by
round: a ratio survives a busy machine where a time does not. The pca path reads the IR that the stem has just
made, as it does in use.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from delta.bench.interleaved import Figures, alternate, milliseconds, one_thread, ratio, warm_allocator
from delta.decomposition.basis import iteration_start, pca_basis, svd_basis, synthetic_images
from delta.decomposition.decomposer import Decomposer
from delta.models.memory import peak_memory, tensor_bytes
from delta.release.bounding import normalise
from delta.release.mechanism import one_bit
from delta.release.message import MessageMap
from delta.release.packing import pack_bits

__all__ = ["TARGETS", "measure_decomposition"]

BATCH, CHANNELS, SIZE, RANK, BLOCK, KEEP = 32, 64, 32, 8, 16, 8
TARGETS: dict[str, str] = {
    "pca_path": "over_stem at most 1.0",
    "svd_exact": "speedup at least 7, captured_energy 1.000",
    "svd_approximate": "speedup at least 15, residual at most 1.03",
    "memory": "over_ir at most 0.5",
}
"""What each figure is meant to reach."""


def measure_decomposition(*, rounds: int = 21, warmup: int = 5, seed: int = 0) -> Figures:
    """Time decomposition and release of a `[32, 64, 32, 32]` float32 IR on one thread.

    The IR comes from a 3→64 convolution, BatchNorm and PReLU with random weights, on synthetic 1/f images;
    the basis from other such images. `pca_path` is: decompose, map by the channel mean (k = 1), normalise,
    sign, pack.

    Args:
        rounds: timed rounds; each times every candidate once.
        warmup: rounds before them that do not count.
        seed: of weights and images.

    Returns:
        By name, milliseconds `median_ms`, `min_ms`, `max_ms`, and ratios, each as the median over the rounds,
        `_min` and `_max`:
        `stem`, `pca_path` (`over_stem`), and both again with the suffix `_channels_last`;
        `linalg_svd`, `svd_exact` (`speedup`, and `captured_energy` over linalg's), `svd_approximate`
        (`speedup`, and `residual` energy over linalg's);
        `memory` (`over_ir`: the most bytes that the pca path holds beyond the IR, over those of the IR).
    """
    with one_thread(), torch.inference_mode():
        warm_allocator()
        stem = _stem(seed)
        images = synthetic_images(BATCH, (3, SIZE, SIZE), seed)
        phi = stem(images)
        samples = stem(synthetic_images(2 * BATCH, (3, SIZE, SIZE), seed + 1))
        decomposer = Decomposer(
            channels=CHANNELS,
            height=SIZE,
            width=SIZE,
            rank=RANK,
            block=BLOCK,
            keep=KEEP,
            kind="pca",
            basis=pca_basis(samples, RANK),
        )
        path = _pca_path(decomposer, MessageMap("channel-mean", channels=CHANNELS))
        figures = _pca_figures(stem, path, images, rounds=rounds, warmup=warmup)
        figures |= _svd_figures(phi, iteration_start(CHANNELS, RANK, seed), rounds=rounds, warmup=warmup)
        extra = peak_memory(path, phi) - tensor_bytes([phi])
        figures["memory"] = {"over_ir": extra / tensor_bytes([phi])}
    return figures


def _stem(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        convolution = nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(CHANNELS), nn.PReLU(CHANNELS)).eval()


def _pca_path(decomposer: Decomposer, message: MessageMap) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def path(phi: Tensor) -> tuple[Tensor, Tensor]:
        parts, mapped = decomposer.decompose_and_map(phi, message.weight)
        bits = one_bit(normalise(mapped, 1.0), sigma=None, uniforms=None)
        return decomposer.main_input(parts), pack_bits(bits)

    return path


def _pca_figures(
    stem: nn.Module, path: Callable[[Tensor], object], images: Tensor, *, rounds: int, warmup: int
) -> Figures:
    last = torch.channels_last
    other: nn.Module = copy.deepcopy(stem)
    other.to(memory_format=last)  # type: ignore[call-overload]  # torch's stubs lack this form
    layouts: dict[str, tuple[nn.Module, Tensor]] = {
        "": (stem, images),
        "_channels_last": (other, images.contiguous(memory_format=last)),
    }
    times: dict[str, list[float]] = {
        f"{kind}{suffix}": [] for suffix in layouts for kind in ("stem", "pca_path")
    }
    for done in range(-warmup, rounds):
        for suffix, (module, x) in layouts.items():
            start = time.perf_counter()
            phi = module(x)
            middle = time.perf_counter()
            path(phi)
            end = time.perf_counter()
            if done >= 0:
                times[f"stem{suffix}"].append(middle - start)
                times[f"pca_path{suffix}"].append(end - middle)
    figures = {name: milliseconds(values) for name, values in times.items()}
    for suffix in layouts:
        figures[f"pca_path{suffix}"] |= ratio("over_stem", times[f"pca_path{suffix}"], times[f"stem{suffix}"])
    return figures


def _svd_figures(phi: Tensor, start: Tensor, *, rounds: int, warmup: int) -> Figures:
    flat = phi.flatten(2)
    candidates: dict[str, Callable[[], Tensor]] = {
        "linalg_svd": lambda: torch.linalg.svd(flat, full_matrices=False).U[:, :, :RANK],
        "svd_exact": lambda: svd_basis(phi, RANK),
        "svd_approximate": lambda: svd_basis(phi, RANK, "approximate", start),
    }
    times = alternate(candidates, rounds=rounds, warmup=warmup)
    figures = {name: milliseconds(values) for name, values in times.items()}
    for name in ("svd_exact", "svd_approximate"):
        figures[name] |= ratio("speedup", times["linalg_svd"], times[name])
    whole = float(flat.double().square().sum())
    energy = {name: _captured(flat, run()) for name, run in candidates.items()}
    figures["svd_exact"]["captured_energy"] = energy["svd_exact"] / energy["linalg_svd"]
    optimal = whole - energy["linalg_svd"]
    figures["svd_approximate"]["residual"] = (whole - energy["svd_approximate"]) / optimal
    return figures


def _captured(flat: Tensor, basis: Tensor) -> float:
    """‖UᵀX‖² over the batch, in float64."""
    return float(torch.bmm(basis.double().mT, flat.double()).square().sum())
