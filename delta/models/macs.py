"""Multiply-accumulate operations (MACs), as integers per record.

Counted are convolutions and matrix products, as `torch.utils.flop_counter` sees them (two FLOPs are one MAC).
Batch normalisation, activations, pooling, additions and the eigenvalue problem of `svd` are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from delta.models.dry_run import dry_run

if TYPE_CHECKING:
    from delta.decomposition.decomposer import Decomposer

__all__ = [
    "count_macs",
    "count_params",
    "dct_macs",
    "decomposition_macs",
    "front_macs",
    "macs_by_module",
    "svd_macs",
]


def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """MACs of one record through a module, in eval mode.

    Args:
        module: any module; nothing in it is changed.
        inputs: what its forward takes, records along axis 0; one record is counted.

    Raises:
        ModelError: the module does not run on such inputs.
    """
    return macs_by_module(module, *inputs)[""]


def macs_by_module(module: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """MACs of one record by qualified module name, submodules included; the whole under the empty name.

    Raises:
        ModelError: the module does not run on such inputs.
    """
    counter = dry_run(module, *inputs, watch=lambda _: FlopCounterMode(display=False))
    by_name = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    prefix = f"{type(module).__name__}."
    counts = {name.removeprefix(prefix): macs for name, macs in by_name.items() if name.startswith(prefix)}
    return {**counts, "": counter.get_total_flops() // 2}


def count_params(module: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def svd_macs(*, ir_shape: tuple[int, int, int], rank: int) -> int:
    """The slides' convention for the SVD: one projection to r channels, r·c·h·w."""
    c, h, w = ir_shape
    return rank * c * h * w


def dct_macs(*, ir_shape: tuple[int, int, int], rank: int, block: int) -> int:
    """The slides' convention for the DCT: two M³ products a block and channel, r·(h/M)·(w/M)·2·M³."""
    _, h, w = ir_shape
    return rank * (h // block) * (w // block) * 2 * block**3


def front_macs(
    backbone: nn.Module,
    decomposer: Decomposer,
    record: Tensor,
    *,
    k: int,
    offload: Literal["residual", "principal"] = "residual",
    stride: int | None = None,
) -> int:
    """What stands in front of a main model, per record: backbone, decomposition and message map.

    Args:
        backbone: φ.
        decomposer: behind it.
        record: one preprocessed record, `[1, channels, height, width]`.
        k: channels of the message.
        offload: the stream that feeds the message.
        stride: of a learned message map; none for a fixed one.
    """
    return count_macs(backbone, record) + decomposition_macs(
        ir_shape=decomposer.ir_shape,
        rank=decomposer.rank,
        block=decomposer.block,
        keep=decomposer.keep,
        basis=decomposer.kind,
        k=k,
        offload=offload,
        stride=stride,
    )


def decomposition_macs(
    *,
    ir_shape: tuple[int, int, int],
    rank: int,
    block: int,
    keep: int,
    basis: Literal["svd", "pca"],
    k: int,
    offload: Literal["residual", "principal"] = "residual",
    stride: int | None = None,
) -> int:
    """What the decomposition and the message map execute, per record of a batch.

    With A `[k, c]` the message map, D_h `[h', h]` and D_w `[w', w]` the spatial basis, a(j) and s(j) the
    spatial analysis and synthesis of j maps, and n the maps that are analysed in one go (r + k where k ≤ r,
    else r):

        both         [Uᵀ; A] φ               (r + k)·c·h·w
                     p = D_h (Uᵀφ) D_wᵀ      a(n), a(j) = j·(h'·h·w + h'·w·w')
        svd          Gram matrix φ·φᵀ        c²·h·w
                     U·p, read by M_main     c·r·h'·w'
        residual     A·U, for svd            k·c·r
                     (A·U)·p                 k·r·h'·w'
                     D_hᵀ (A·U·p) D_w        s(k), s(j) = j·(h'·w'·w + h·h'·w)
        residual, all channels (k = c): no A; p is synthesised, s(r), and raised to c channels, c·r·h·w
        principal    A·p                     k·r·h'·w', nothing for all channels (k = r)

    A learned map is never taken for the identity. With stride s > 1 it is `[k, c·s²]`, and the residual's terms are

        [Uᵀ] φ, a(r)                         r·c·h·w
        A·φ, over squares                    k·c·h·w
        A·U, for svd                         k·c·s²·r
        D_hᵀ p D_w                           s(r)
        (A·U)·(D_hᵀ p D_w), over squares     k·r·h·w

    The residual's message is A·φ − A·φ̂: but for k = c the residual is never formed as a whole. The eigenvalue
    problem of the Gram matrix (c×c, of order c³) is no matrix product and is not counted. Nor are A·U for
    pca, one product a batch, and the second copy beside which a lone record is multiplied.

    Args:
        ir_shape: `(c, h, w)`.
        rank: r.
        block: M.
        keep: m.
        basis: `svd` or `pca`.
        k: channels of the message; 0 for none.
        offload: the stream that the message is made from.
        stride: s of a learned message map; none for a fixed one.
    """
    c, h, w = ir_shape
    kept_h, kept_w = h // block * keep, w // block * keep
    analysis = 0 if keep == block else kept_h * h * w + kept_h * w * kept_w
    synthesis = 0 if keep == block else kept_h * kept_w * w + h * kept_h * w
    total = rank * c * h * w
    if basis == "svd":
        total += c * c * h * w + c * rank * kept_h * kept_w
    learned = stride is not None
    if offload == "principal" or k == 0:
        return total + rank * analysis + (k * rank * kept_h * kept_w if k != rank or learned else 0)
    if stride is not None and stride > 1:
        total += k * c * rank * stride**2 if basis == "svd" else 0
        return total + rank * (analysis + synthesis) + k * (c + rank) * h * w
    if k == c and not learned:
        return total + rank * (analysis + synthesis) + c * rank * h * w
    total += (rank + k if k <= rank else rank) * analysis + k * synthesis
    total += k * c * rank if basis == "svd" else 0
    return total + k * c * h * w + k * rank * kept_h * kept_w
