"""The pair of images whose releases an audit tries to tell apart: as far apart as the bound lets messages be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from delta.attacks.audit.network import SIDE
from delta.attacks.messages import differentiable_messages
from delta.bundle.store import Bundle
from delta.decomposition.basis import synthetic_images
from delta.errors import BundleError
from delta.methods.delta.parts import PrivateParts
from delta.release.bounding import clip, normalise
from delta.release.config import ReleaseConfig
from delta.release.message import message_of

__all__ = ["Pair", "bounded_messages", "exact_pair", "release_of", "searched_pair"]

_STARTS, _STEPS, _RATE = 4, 150, 0.1


@dataclass(frozen=True)
class Pair:
    """Two images and what the claimed mechanism makes of them.

    Attributes:
        images: `[2, channels, height, width]` in [0, 1].
        mate: `[channels, height, width]`, an image that only keeps the pair's records company in a batch.
        messages: bounded, `[2, d]` float64.
        kind: `exact` or `searched`.
        reached: ‖m − m′‖ / 2C, at most 1: what the search lacks is power that the audit lacks.
    """

    images: Tensor
    mate: Tensor
    messages: Tensor
    kind: str
    reached: float

    def to_json(self) -> dict[str, object]:
        """What a report says of it; no pixel."""
        widest = (self.messages[0] - self.messages[1]).abs()
        share = float(widest.max() ** 2 / widest.square().sum().clamp_min(1e-300))
        return {"kind": self.kind, "reached": self.reached, "bits": widest.numel(), "in_one_bit": share}


def release_of(bundle: Bundle) -> ReleaseConfig:
    """The release configuration of a bundle.

    Raises:
        BundleError: the bundle has none.
    """
    if bundle.manifest.release is None:
        raise BundleError(
            f"a bundle of method {bundle.manifest.method!r} has no release to audit; give one of method 'delta'"
        )
    return bundle.manifest.release


@torch.no_grad()
def bounded_messages(parts: PrivateParts, release: ReleaseConfig, x: Tensor) -> Tensor:
    """The messages that the release configuration declares for records: `[n, d]` float64, norm at most C.

    Args:
        parts: the private modules, in eval mode.
        release: their configuration.
        x: preprocessed records `[n, channels, height, width]`, n ≥ 2.
    """
    _, m = message_of(
        parts.backbone(x), decomposer=parts.decomposer, message=parts.message, offload=release.offload
    )
    bound = normalise if release.bounding.kind == "normalise" else clip
    return bound(m, release.bounding.clip_norm).flatten(1).cpu()


def exact_pair(parts: PrivateParts, release: ReleaseConfig) -> Pair:
    """The pair of the transparent network: an impulse of either sign, whose messages are ±C·e."""
    channels = release.input.shape[0]
    grey = torch.full((channels, SIDE, SIDE), 0.5)
    images = grey.repeat(2, 1, 1, 1)
    images[0, -1, SIDE // 2, SIDE // 2], images[1, -1, SIDE // 2, SIDE // 2] = 1.0, 0.0
    return _pair(parts, release, images, grey, kind="exact")


def searched_pair(parts: PrivateParts, release: ReleaseConfig, *, seed: int) -> Pair:
    """Two images found by gradient ascent on ‖m(x) − m(x′)‖, through the real backbone.

    Every start is synthetic: an audit needs no record of anybody, and shows none.

    Args:
        parts: the private modules, in eval mode.
        release: their configuration.
        seed: of the starts.
    """
    start = synthetic_images(_STARTS, release.input.shape, seed)
    both = torch.stack([start, -start], 1).flatten(0, 1).clamp(-2, 2).requires_grad_(True)
    optimizer = torch.optim.Adam([both], lr=_RATE)
    best, chosen = torch.full((_STARTS,), -1.0, dtype=torch.float64), torch.sigmoid(both).detach()
    for _ in range(_STEPS):
        images = torch.sigmoid(both)
        m = differentiable_messages(parts, release, release.input.preprocess(images))
        apart = (m[0::2] - m[1::2]).norm(dim=1)
        with torch.no_grad():
            better = apart > best
            best = torch.where(better, apart, best)
            chosen = torch.where(better.repeat_interleave(2)[:, None, None, None], images, chosen)
        optimizer.zero_grad()
        torch.neg(apart.sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    at = int(best.argmax())
    mean = torch.tensor(release.input.mean).clamp(0, 1)[:, None, None]
    mate = mean.expand(release.input.shape).contiguous()
    return _pair(parts, release, chosen[2 * at : 2 * at + 2].detach().clone(), mate, kind="searched")


def _pair(parts: PrivateParts, release: ReleaseConfig, images: Tensor, mate: Tensor, *, kind: str) -> Pair:
    messages = bounded_messages(parts, release, release.input.preprocess(images))
    reached = float((messages[0] - messages[1]).norm()) / (2 * release.bounding.clip_norm)
    return Pair(images, mate, messages, kind, min(1.0, reached))
