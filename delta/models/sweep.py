"""All split points of a model, ranked by what they cost and what they keep private."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from delta.decomposition import Decomposer
from delta.decomposition.basis import pca_basis, synthetic_images
from delta.errors import InputError, SplitError
from delta.models.crop import crop_for, nearest_crop
from delta.models.modes import evaluating
from delta.models.plan import plan
from delta.models.splitting import Parts, all_parts
from delta.models.targets import build_target, full_target
from delta.release.message import MessageKind

__all__ = ["SweepRow", "energy_kept", "sweep"]


@dataclass(frozen=True)
class SweepRow:
    """One split parts.

    Attributes:
        at: the first module that would run in the cloud.
        ir_shape: `(c, h, w)`.
        rank: r, lowered where the IR has fewer channels.
        block: M, lowered where it does not divide the IR.
        keep: m.
        backbone_macs: per record.
        private_macs: backbone, decomposition and main model, per record.
        cloud_macs: adapter and body, per record.
        bytes_up: packed bits a record.
        energy_kept: ‖p‖²/‖φ‖² over the images, the share that stays private: 0 to 1.
    """

    at: str
    ir_shape: tuple[int, int, int]
    rank: int
    block: int
    keep: int
    backbone_macs: int
    private_macs: int
    cloud_macs: int
    bytes_up: int
    energy_kept: float

    def to_json(self) -> dict[str, Any]:
        """The fields by name, plain JSON."""
        return {**asdict(self), "ir_shape": list(self.ir_shape)}


def sweep(
    model: nn.Module | str,
    example: Tensor,
    *,
    arguments: Mapping[str, Any] | None = None,
    images: Tensor | None = None,
    rank: int = 8,
    block: int | None = None,
    keep: int | None = None,
    basis: Literal["svd", "pca"] = "pca",
    offload: Literal["residual", "principal"] = "residual",
    message: MessageKind | None = None,
    k: int | None = None,
    message_stride: int = 1,
    main_layout: Literal["authors", "light"] = "light",
    main_max_macs: int | None = None,
) -> list[SweepRow]:
    """Rank all valid split points.

    Args:
        model: the model, or a name of ours or an import target that builds it.
        example: records `[n, channels, height, width]`.
        arguments: of a model given by name.
        images: preprocessed records on which the energy is measured, `[n, channels, height, width]`, n ≥ 1;
            none for 16 seeded synthetic 1/f images.
        rank: r, lowered where the IR has fewer channels.
        block: M, lowered where it does not divide the IR; none for the largest usual one.
        keep: m, as large a share of the block as asked for; none for half.
        basis: `svd` or `pca`.
        offload: the stream that the message is made from.
        message: its map; none for the channel mean of the residual, or all of the principal channels.
        k: channels of a `projection` or of a `learned` map.
        message_stride: of a `learned` map.
        main_layout: `authors` or `light`.
        main_max_macs: budget of a `light` main model; none takes a hundredth of the whole model's MACs.

    Returns:
        One row a split point, by private MACs, then bytes up, then more energy first.

    Raises:
        SplitError: the model can be split nowhere.
        InputError: images of another shape than the example's records.
    """
    if isinstance(model, str):
        target = full_target(model)
        model = build_target(target, arguments, allowed={target})
    if images is None:
        channels, height, width = example.shape[1:]
        images = synthetic_images(16, (channels, height, width), seed=0)
    record = ", ".join(map(str, example.shape[1:]))
    if images.dim() != 4 or images.shape[1:] != example.shape[1:] or not len(images):
        raise InputError(
            f"images must have the shape of the example's records, [n, {record}], got {list(images.shape)}"
        )
    images = images.to(example)
    rows = []
    for parts in all_parts(model, example):
        fitted = min(rank, parts.ir_shape[0])
        if block is None:
            m_block, m_keep = crop_for(parts.ir_shape)
        else:
            m_block, m_keep = nearest_crop(
                parts.ir_shape, block=block, keep=keep if keep is not None else max(block // 2, 1)
            )
        channels_out = min(k, parts.ir_shape[0] if offload == "residual" else fitted) if k else None
        cost = plan(
            parts,
            rank=fitted,
            block=m_block,
            keep=m_keep,
            basis=basis,
            offload=offload,
            message=message,
            k=channels_out,
            message_stride=message_stride,
            main_layout=main_layout,
            main_max_macs=main_max_macs,
        )
        rows.append(
            SweepRow(
                at=parts.at,
                ir_shape=parts.ir_shape,
                rank=fitted,
                block=m_block,
                keep=m_keep,
                backbone_macs=cost.macs["backbone"],
                private_macs=cost.private_macs,
                cloud_macs=cost.macs["cloud"],
                bytes_up=cost.bytes_per_record["up"],
                energy_kept=energy_kept(parts, images, rank=fitted, block=m_block, keep=m_keep, basis=basis),
            )
        )
    if not rows:
        raise SplitError("the model can be split nowhere; run `delta check` to see what stands in the way")
    return sorted(rows, key=lambda row: (row.private_macs, row.bytes_up, -row.energy_kept))


def energy_kept(
    parts: Parts, images: Tensor, *, rank: int, block: int, keep: int, basis: Literal["svd", "pca"]
) -> float:
    """‖p‖²/‖φ‖², summed over images `[n, channels, height, width]`; 1 where φ vanishes.

    A `pca` basis is fitted on the same images, so its figure is the best case.
    """
    with evaluating(parts.backbone):
        phi = parts.backbone(images)
        c, h, w = parts.ir_shape
        decomposer = Decomposer(
            channels=c,
            height=h,
            width=w,
            rank=rank,
            block=block,
            keep=keep,
            kind=basis,
            basis=pca_basis(phi, rank) if basis == "pca" else None,
        ).to(phi.device)
        kept = decomposer(phi).principal.to(torch.float64).square().sum()
        whole = phi.to(torch.float64).square().sum()
    return min(float(kept / whole), 1.0) if float(whole) > 0 else 1.0  # rounding may pass 1
