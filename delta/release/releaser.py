"""The release: the one function that turns private tensors into outbound bytes (invariant I2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from delta.decomposition.decomposer import Decomposer
from delta.errors import ConfigError, InputError
from delta.privacy.events import GaussianRelease, release_event
from delta.privacy.ledger import Debit
from delta.release.bounding import check_finite, clip, normalise
from delta.release.components import check_components, check_per_record, component_hash
from delta.release.config import ReleaseConfig
from delta.release.ids import RecordIds, ReleaseId, ReleaseIdentity, identities_of
from delta.release.layout import arranged, arrangement_of, cut, words_for
from delta.release.mechanism import one_bit
from delta.release.memo import ReleaseMemo, recall
from delta.release.message import MessageMap, message_in_parts
from delta.release.noise import NoiseKey
from delta.release.packing import pack_bits

__all__ = ["Released", "Releaser", "backbone_passes", "component_hash"]

_TOGETHER = 64
"""Records that are decomposed together: bounds the memory of a large call."""
_IR_BYTES = 2**21
"""On a CPU, many records pass the backbone so few at a time that their IR, so many bytes a thread, still lies
in the cache when it is read again; each pass has a price, so fewer are slower."""


def backbone_passes(records: int, *, ir_shape: tuple[int, int, int], device: torch.device) -> int:
    """In how many goes records pass the backbone: one, where a record's place in memory might round its bits."""
    channels, height, width = ir_shape
    if device.type != "cpu" or height * width % 16:
        return 1
    at_once = max(2, torch.get_num_threads() * _IR_BYTES // (4 * channels * height * width))
    return 1 if records <= 2 * at_once else math.ceil(records / at_once)


@dataclass(frozen=True)
class Released:
    """What a batch gave. Only the payload may leave the private side.

    Attributes:
        payload: `[n, B]` uint8, packed bits; see `delta.release.packing`.
        main_input: `[n, main_channels, h', w']`, for the main model.
        release_ids: opaque name of each release.
        fresh: whether each was drawn now, and not sent before.
        mu: 2C/σ of each release; none without noise.
        debits: what a ledger must enter before the payload is sent. Stored releases are listed too: they
            cost nothing once entered, and one that was refused is refused again.
    """

    payload: Tensor
    main_input: Tensor
    release_ids: list[ReleaseId]
    fresh: list[bool]
    mu: float | None
    debits: list[Debit]


class Releaser:
    """Backbone, decomposition, message, bound, noise, layout and packing of one release configuration.

    A record's bits depend on the record, its id, the configuration and the key alone, never on its batch. In
    shapes that fill no multiple of 64 bytes (see `Decomposer`) floating-point sums may differ in the last
    digit, and a value that lies that near its threshold may turn its bit; a memo rules that out as well.

    Args:
        config: the release configuration.
        backbone: φ, in eval mode.
        decomposer: with the configuration's basis.
        message: the configuration's message map.
        key: the noise key; may be none where no bit depends on it, and then names of releases last one process.
        memo: stored releases; none draws again, and the key gives the same bits.

    Raises:
        ConfigError: a module is not the configuration's, mixes records, or there is noise without a key.
    """

    def __init__(
        self,
        config: ReleaseConfig,
        *,
        backbone: nn.Module,
        decomposer: Decomposer,
        message: MessageMap,
        key: NoiseKey | None,
        memo: ReleaseMemo | None,
    ) -> None:
        if key is None and config.keyed:
            what, other = (
                ("noise", "noise") if config.sigma is not None else ("a shuffled layout", "an order")
            )
            raise ConfigError(
                f"{what} needs a noise key, or each run would give the same record new {other}; pass "
                "key=NoiseKey.beside(folder of the bundle), or open the bundle by its folder"
            )
        check_per_record(backbone)
        check_components(config, backbone=backbone, decomposer=decomposer, message=message)
        self.config = config
        self._backbone, self._decomposer, self._message = backbone, decomposer, message
        self._key = key if key is not None else NoiseKey.generate()
        self._memo = memo
        self._event = release_event(sigma=config.sigma, clip_norm=config.bounding.clip_norm)
        first = next(chain(backbone.parameters(), backbone.buffers(), message.buffers()))
        self._device = first.device

    @torch.no_grad()
    def release(self, x: Tensor, ids: RecordIds | None = None) -> Released:
        """Make the releases of preprocessed records.

        Args:
            x: `[n, channels, height, width]`, floating, finite, n ≥ 1.
            ids: who they are; none for content digests inside one subject.

        Raises:
            InputError: records of another shape or type, not finite, or ids that are not one a record.
            ConfigError: the backbone was put into training mode, or the memo is another configuration's.
        """
        check_per_record(self._backbone)
        identities = self._identities(x, ids)
        parts = [self._message_of(part) for part in torch.split(x, _TOGETHER)]
        message = torch.cat([m for m, _ in parts])
        check_finite(message, what="a message")
        payload = pack_bits(self._laid_out(self._bits(message, identities), identities))
        names = [self._key.release_id(identity) for identity in identities]
        fresh = recall(self._memo, payload, names)
        return Released(
            payload=payload,
            main_input=torch.cat([main for _, main in parts]),
            release_ids=names,
            fresh=fresh,
            mu=self._event.mu if isinstance(self._event, GaussianRelease) else None,
            debits=[Debit(i.subject, name, self._event) for i, name in zip(identities, names, strict=True)],
        )

    def _identities(self, x: Tensor, ids: RecordIds | None) -> list[ReleaseIdentity]:
        shape = self.config.input.shape
        if x.dim() != 4 or tuple(x.shape[1:]) != shape or not len(x) or not x.dtype.is_floating_point:
            kind = str(x.dtype).removeprefix("torch.")
            raise InputError(
                f"expected preprocessed records [n, {', '.join(map(str, shape))}] in floating point, n ≥ 1; "
                f"got {kind}{list(x.shape)}"
            )
        check_finite(x, what="a record")
        return identities_of(x, ids, release_hash=self.config.release_hash, mechanism=self.config.mechanism)

    def _message_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The message `[n, k, h_m, w_m]` on the CPU, and the main model's input."""
        with torch.autocast(self._device.type, enabled=False):
            passes = backbone_passes(len(x), ir_shape=self.config.ir_shape, device=self._device)
            main_input, message = message_in_parts(
                (self._phi(few.to(self._device)) for few in torch.tensor_split(x, passes)),
                decomposer=self._decomposer,
                message=self._message,
                offload=self.config.offload,
            )
            return message.cpu(), main_input

    def _phi(self, x: Tensor) -> Tensor:
        # Convolution libraries take another kernel for a batch of one, which rounds differently: a lone
        # record rides with its copy, so that a restart finds the same bits whatever came together.
        phi: Tensor = self._backbone(x if len(x) > 1 else x.expand(2, -1, -1, -1))
        return phi[: len(x)]

    def _bits(self, message: Tensor, identities: Sequence[ReleaseIdentity]) -> Tensor:
        sigma = self.config.sigma
        if sigma is None:  # a positive scale changes no sign
            return one_bit(message, sigma=None, uniforms=None)
        bound = normalise if self.config.bounding.kind == "normalise" else clip
        bounded = bound(message, self.config.bounding.clip_norm).flatten(1)
        uniforms = self._key.batch_uniforms(identities, bounded.shape[1])
        return one_bit(bounded, sigma=sigma, uniforms=uniforms).view(message.shape)

    def _laid_out(self, bits: Tensor, identities: Sequence[ReleaseIdentity]) -> Tensor:
        """Bits `[n, k, h_m, w_m]` in the order in which they are packed."""
        layout, patches = self.config.layout, self.config.patches
        if layout.patch is None:
            return bits
        words = self._key.batch_layouts(identities, words_for(patches))
        order = arrangement_of(words, patches=patches, mirror=layout.mirror)
        return arranged(cut(bits, layout.patch), order.to(bits.device))
