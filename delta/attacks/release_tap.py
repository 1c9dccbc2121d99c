"""The tap on Delta's release: the bits that leave, as ±1."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from delta.attacks.matching import likelihood_scores
from delta.attacks.tap import Tap, look_ids
from delta.bundle.store import Bundle
from delta.errors import BundleError, ConfigError
from delta.methods.delta.parts import load_private_parts
from delta.methods.whole import allowed_targets
from delta.release.bounding import clip, normalise
from delta.release.ids import RecordIds, identities_of
from delta.release.layout import (
    Arrangement,
    arranged,
    arrangement_of,
    cut,
    join,
    random_arrangement,
    unpack_patches,
    words_for,
)
from delta.release.memo import InMemoryMemo
from delta.release.message import message_of
from delta.release.noise import NoiseKey
from delta.release.packing import unpack_bits
from delta.release.releaser import Releaser

__all__ = ["ReleaseTap", "victim_key"]

_BATCH = 256


def victim_key(seed: int) -> NoiseKey:
    """The victims' noise key of a run that can be repeated; whoever knows the seed is no attacker."""
    return NoiseKey(hashlib.sha256(f"delta/attack/victims/v1 {seed}".encode()).digest())


class ReleaseTap(Tap):
    """Bits as ±1, averaged over looks. Shuffled ones lie row by row in the order in which their patches were sent.

    Every look at a shuffled release has another order, so that their mean says nothing: `adds_up` is false.

    Args:
        bundle: of method `delta`.
        allow: import targets that it may build.

    Raises:
        BundleError: there is no release configuration in it.
    """

    name = "release"

    def __init__(self, bundle: Bundle, *, allow: Collection[str] = ()) -> None:
        if bundle.manifest.release is None:
            raise BundleError(
                f"tap 'release' needs a bundle of method 'delta'; this one is of {bundle.manifest.method!r}: "
                f"use the tap {bundle.manifest.method!r}"
            )
        self.release = bundle.manifest.release
        self.shape = self.release.message.shape
        self.noisy = self.release.sigma is not None
        self.patch = self.release.layout.patch
        self.adds_up = self.patch is None
        self._parts = load_private_parts(bundle, allowed=allowed_targets(bundle, allow))
        self._bound = normalise if self.release.bounding.kind == "normalise" else clip

    @torch.no_grad()
    def messages(self, x: Tensor) -> Tensor:
        """Bounded messages of preprocessed records, `[n, *shape]` float64 on their device."""
        parts, found = self._parts.to(x.device), []
        for part in torch.split(x, _BATCH):
            _, message = message_of(
                parts.backbone(part),
                decomposer=parts.decomposer,
                message=parts.message,
                offload=self.release.offload,
            )
            found.append(self._bound(message, self.release.bounding.clip_norm))
        return torch.cat(found)

    @torch.no_grad()
    def simulate(self, x: Tensor, *, looks: int, generator: torch.Generator) -> Tensor:
        """Bits of the mechanism's law, layout included, from the attacker's own random numbers."""
        return self.draw(self.messages(x), looks=looks, generator=generator)

    @torch.no_grad()
    def draw(self, messages: Tensor, *, looks: int, generator: torch.Generator) -> Tensor:
        """The same, of bounded messages that are known already."""
        if self.patch is None:
            return self.kept(messages, looks=looks, generator=generator)
        total = torch.zeros(messages.shape, device=messages.device)
        for _ in range(looks):
            order = random_arrangement(
                len(messages),
                patches=self.release.patches,
                mirror=self.release.layout.mirror,
                generator=generator,
                device=messages.device,
            )
            bits = self.kept(messages, generator=generator)
            total += join(arranged(cut(bits, self.patch), order), (self.shape[1], self.shape[2]))
        return total.div_(looks)

    @torch.no_grad()
    def kept(self, messages: Tensor, *, looks: int = 1, generator: torch.Generator) -> Tensor:
        """The same before the layout is destroyed: 1 with probability Φ(m/σ)."""
        if self.release.sigma is None:
            return (messages >= 0).float().mul_(2).sub_(1)
        chance = torch.special.ndtr(messages / self.release.sigma).float()
        total = torch.zeros_like(chance)
        for _ in range(looks):
            total += torch.rand(chance.shape, generator=generator, device=chance.device) < chance
        return total.mul_(2 / looks).sub_(1)

    def capture(
        self, x: Tensor, ids: Sequence[str], *, looks: int = 1, fresh: bool = True, seed: int = 0
    ) -> Tensor:
        """Payloads of the real releaser, unpacked."""
        total = torch.zeros(len(x), *self.shape, device=x.device)
        releaser = self._releaser(x.device, seed)
        for look in range(looks):
            names = look_ids(ids, look if fresh else 0)
            for start in range(0, len(x), _BATCH):
                part = slice(start, start + _BATCH)
                payload = releaser.release(x[part], RecordIds(records=names[part])).payload
                bits = (
                    unpack_bits(payload, self.shape)
                    if self.patch is None
                    else unpack_patches(payload, self.shape, patch=self.patch)
                )
                total[part] += bits.to(x.device)
        return total.mul_(2 / looks).sub_(1)

    def arrangement(self, x: Tensor, ids: Sequence[str], *, seed: int) -> Arrangement:
        """How the patches that `capture` shows were sent: what only the holder of the key knows, to score by.

        Raises:
            ConfigError: the layout is kept.
        """
        if self.patch is None:
            raise ConfigError("this release keeps its layout; there is no order of patches")
        release = self.release
        identities = identities_of(
            x, RecordIds(records=ids), release_hash=release.release_hash, mechanism=release.mechanism
        )
        words = victim_key(seed).batch_layouts(identities, words_for(release.patches))
        return arrangement_of(words, patches=release.patches, mirror=release.layout.mirror)

    def bags(self, messages: Tensor, patch: int) -> Tensor:
        """Patches of messages `[m, k, h, w]`, those that may be mirrored in every way: `[m, patches, k·patch²]`."""
        if self.patch is None or not self.release.layout.mirror:
            return cut(messages, patch).flatten(2)
        patches = cut(messages, patch)
        turned = [patches.flip(axes) if axes else patches for axes in ((), (-1,), (-2,), (-2, -1))]
        return torch.cat([one.flatten(2) for one in turned], dim=1)

    def templates(self, x: Tensor) -> Tensor:
        """Bounded messages, `[n, d]` float32: no noise is in them."""
        return torch.cat([self.messages(part).flatten(1).float() for part in torch.split(x, _BATCH)])

    def scores(self, observed: Tensor, templates: Tensor, *, looks: int) -> Tensor:
        """Log-likelihood of the bits under each candidate's message."""
        return likelihood_scores(observed, templates, sigma=self.release.sigma, looks=looks)

    def _releaser(self, device: torch.device, seed: int) -> Releaser:
        parts = self._parts.to(device)
        return Releaser(
            self.release,
            backbone=parts.backbone,
            decomposer=parts.decomposer,
            message=parts.message,
            key=victim_key(seed),
            memo=InMemoryMemo(),
        )
