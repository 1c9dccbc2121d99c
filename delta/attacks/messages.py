"""What a release's message is, as a function of the record that gradients pass: for attacks that know the backbone."""

from __future__ import annotations

import torch
from torch import Tensor

from delta.methods.delta.parts import PrivateParts
from delta.release.config import ReleaseConfig
from delta.release.message import message_of

__all__ = ["differentiable_messages"]

_SMALL = 1e-12


def differentiable_messages(parts: PrivateParts, release: ReleaseConfig, x: Tensor) -> Tensor:
    """Bounded messages of preprocessed records, with gradients to them and never through a basis.

    The releaser's own arithmetic, but for its care with norms that float64 cannot square.

    Args:
        parts: the private modules, in eval mode.
        release: their configuration.
        x: preprocessed records `[n, channels, height, width]`.

    Returns:
        `[n, d]` float64.
    """
    _, m = message_of(
        parts.backbone(x), decomposer=parts.decomposer, message=parts.message, offload=release.offload
    )
    flat = m.flatten(1).to(torch.float64)
    scale = release.bounding.clip_norm / flat.norm(dim=1, keepdim=True).clamp_min(_SMALL)
    bounded: Tensor = flat * (scale if release.bounding.kind == "normalise" else scale.clamp(max=1.0))
    return bounded
