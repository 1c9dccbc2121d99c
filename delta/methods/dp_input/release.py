"""The release of a record: bounded, noised, stored; the one function that makes outbound bytes (invariant I2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from delta.errors import ConfigError
from delta.methods.dp_input.noise import InputNoise
from delta.methods.grid_noise import gaussian_on_grid
from delta.privacy.events import GaussianRelease
from delta.privacy.ledger import Debit
from delta.release.bounding import clip, normalise
from delta.release.config import InputSpec
from delta.release.ids import RecordIds, ReleaseId, identities_of
from delta.release.memo import ReleaseMemo, recall
from delta.release.noise import NoiseKey

__all__ = ["NoisyRecords", "RecordReleaser"]


@dataclass(frozen=True)
class NoisyRecords:
    """What a batch gave. Only the payload may leave the private side.

    Attributes:
        payload: `[n, *shape]` float32.
        release_ids: opaque name of each release.
        fresh: whether each was drawn now, and not sent before.
        debits: what a ledger must enter before the payload is sent; stored releases are listed too.
    """

    payload: Tensor
    release_ids: list[ReleaseId]
    fresh: list[bool]
    debits: list[Debit]


class RecordReleaser:
    """Bound, noise and memo of one configuration.

    Args:
        noise: bound and σ.
        input: shape and preprocessing of a record.
        key: the noise key.
        memo: stored releases; none draws again, and the key gives the same values.

    Raises:
        ConfigError: there is no key.
    """

    def __init__(
        self, noise: InputNoise, input: InputSpec, *, key: NoiseKey | None, memo: ReleaseMemo | None
    ) -> None:
        if key is None:
            raise ConfigError(
                "noise needs a noise key, or each run would give the same record new noise; pass "
                "key=NoiseKey.beside(folder of the bundle)"
            )
        self._noise, self._key, self._memo = noise, key, memo
        self._release_hash = noise.release_hash(input)
        self._event = GaussianRelease(noise.mu)
        self._bound = normalise if noise.bounding.kind == "normalise" else clip

    @torch.no_grad()
    def release(self, x: Tensor, ids: RecordIds | None = None) -> NoisyRecords:
        """Make the releases of preprocessed records.

        Args:
            x: `[n, *shape]` float32, finite, n ≥ 1.
            ids: who they are; none for content digests inside one subject.

        Raises:
            InputError: ids that are not one a record.
            ConfigError: the memo is another configuration's.
        """
        identities = identities_of(x, ids, release_hash=self._release_hash, mechanism=self._noise.mechanism)
        bounded = self._bound(x, self._noise.bounding.clip_norm).flatten(1)
        uniforms = torch.stack([self._key.uniforms(one, bounded.shape[1]) for one in identities])
        payload = gaussian_on_grid(bounded, sigma=self._noise.sigma, uniforms=uniforms)
        names = [self._key.release_id(identity) for identity in identities]
        fresh = recall(self._memo, payload.view(torch.uint8), names)
        return NoisyRecords(
            payload=payload.view(x.shape),
            release_ids=names,
            fresh=fresh,
            debits=[Debit(i.subject, name, self._event) for i, name in zip(identities, names, strict=True)],
        )
