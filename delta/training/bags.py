"""Further views of stored bits whose layout is shuffled: mirrors of patches, in the cloud."""

from __future__ import annotations

import torch
from torch import Tensor

from delta.release.config import LayoutConfig
from delta.release.layout import cut, join, mirrored

__all__ = ["mirrored_bags"]


def mirrored_bags(bits: Tensor, layout: LayoutConfig, *, generator: torch.Generator) -> Tensor:
    """Mirror the patches of shuffled bits `[b, k, h_m, w_m]` at random: post-processing, no further release.

    Where the release mirrors each patch by itself, so does this; where it does not, all patches of a record are
    mirrored left to right or none, as those of a mirrored image are. Another order would change nothing: the cloud
    model sees none. Shifts would need the layout.

    Args:
        bits: ±1, patches row by row.
        layout: of the release; shuffled.
        generator: on the CPU.
    """
    if layout.patch is None:
        return bits
    patches = cut(bits, layout.patch)
    b, count = patches.shape[:2]
    if layout.mirror:
        turns = torch.rand(b, count, 2, generator=generator) < 0.5
    else:
        turns = torch.zeros(b, count, 2, dtype=torch.bool)
        turns[:, :, 0] = torch.rand(b, 1, generator=generator) < 0.5
    return join(mirrored(patches, turns.to(bits.device)), (bits.shape[2], bits.shape[3]))
