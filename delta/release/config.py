"""The release configuration: everything that fixes a message and its noise, and nothing else."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor

from delta.config import Strict

__all__ = [
    "MECHANISM",
    "SHUFFLED_MECHANISM",
    "BasisConfig",
    "Bounding",
    "Component",
    "CropConfig",
    "InputSpec",
    "LayoutConfig",
    "MessageConfig",
    "Provenance",
    "ReleaseConfig",
]

MECHANISM = "delta/one-bit/1"
"""Identifier of the one-bit mechanism: the threshold rule, the keyed uniform integers and the bit order."""
SHUFFLED_MECHANISM = "delta/one-bit-shuffled/1"
"""The same, and then `delta.release.layout`: patches in a keyed order, mirrored by key."""
_MOST_PATCHES = 1024
"""Of a record: the cloud model looks at all pairs of them."""


class Provenance(Strict):
    """Where a frozen component comes from; decides whom the privacy claim covers (DESIGN, privacy 6).

    Attributes:
        kind: `data-independent` or `public` make the claim unconditional; `dp` composes its own (ε, δ);
            `private` covers only people with no record in the fit.
        epsilon: of a `dp` fit.
        delta: of a `dp` fit.
        note: how it was made, one line.
    """

    kind: Literal["data-independent", "public", "dp", "private"]
    epsilon: float | None = Field(default=None, gt=0)
    delta: float | None = Field(default=None, gt=0, lt=1)
    note: str = ""

    @model_validator(mode="after")
    def _dp_has_parameters(self) -> Self:
        if (self.kind == "dp") != (self.epsilon is not None and self.delta is not None):
            raise ValueError("provenance 'dp' needs epsilon and delta, and no other kind takes them")
        return self


class Component(Strict):
    """A frozen part of the private path: the hash of its weights, and their provenance."""

    hash: str = Field(pattern="^[0-9a-f]{64}$")
    provenance: Provenance


class InputSpec(Strict):
    """A preprocessed record: `(channels, height, width)`; (value − mean)/std a channel, values in [0, 1]."""

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _one_a_channel(self) -> Self:
        if min(self.shape) < 1:
            raise ValueError("shape needs three sizes of at least 1")
        if not len(self.mean) == len(self.std) == self.shape[0] or min(self.std) <= 0:
            raise ValueError(f"mean and std need {self.shape[0]} entries each, std above 0")
        return self

    def preprocess(self, images: Tensor) -> Tensor:
        """Images `[n, channels, height, width]` in [0, 1] → records, (value − mean)/std a channel."""
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        return (images - mean) / std


class BasisConfig(Strict):
    """The channel basis U, `[c, r]`.

    Attributes:
        kind: `svd` a record, or one `pca` basis for all.
        rank: r.
        algorithm: of `svd`: `exact` through the Gram matrix, or `approximate` by subspace iteration.
        component: hash of the pca basis or of the iteration's fixed start, with its provenance.
    """

    kind: Literal["svd", "pca"]
    rank: int = Field(ge=1)
    algorithm: Literal["exact", "approximate"] = "exact"
    component: Component


class CropConfig(Strict):
    """The spatial basis: block size M and kept size m, 1 ≤ m ≤ M, M dividing height and width."""

    block: int = Field(ge=1)
    keep: int = Field(ge=1)


class MessageConfig(Strict):
    """The frozen linear map from the offloaded stream to the message.

    Attributes:
        map: `channel-mean` (k = 1), a fixed orthonormal `projection` to k channels, `all-channels`, or one that was
            `learned` before the first release.
        shape: of the message, `(k, h_m, w_m)`; of a learned map it is smaller than the stream by its stride.
        component: hash of the map's matrix, with its provenance.
    """

    map: Literal["channel-mean", "projection", "all-channels", "learned"]
    shape: tuple[int, int, int]
    component: Component


class Bounding(Strict):
    """How a message is brought to L2 norm at most C.

    `normalise`: m ← C·m/‖m‖₂ (zero stays zero); `clip`: scaled down only where ‖m‖₂ > C.
    """

    kind: Literal["normalise", "clip"] = "normalise"
    clip_norm: float = Field(default=1.0, gt=0)
    provenance: Provenance = Provenance(kind="data-independent", note="a constant")


class LayoutConfig(Strict):
    """Whether the bits of a record leave where they lie, or as a bag of patches; see `delta.release.layout`.

    Attributes:
        kind: `kept`, or `shuffled`: cut into patches that are sent in random order.
        patch: side of a patch, which divides the message's height and width; none where the layout is kept.
        mirror: whether each patch is mirrored at random, too.
    """

    kind: Literal["kept", "shuffled"] = "kept"
    patch: int | None = Field(default=None, ge=1)
    mirror: bool = True

    @model_validator(mode="before")
    @classmethod
    def _a_patch_will_do(cls, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, str):
            return {"kind": value}
        if isinstance(value, dict) and "kind" not in value and value.get("patch") is not None:
            return {**value, "kind": "shuffled"}
        return value

    @model_validator(mode="after")
    def _only_a_shuffled_one_has_patches(self) -> Self:
        if (self.kind == "shuffled") != (self.patch is not None):
            raise ValueError("layout 'shuffled' needs patch, the side of a patch, and 'kept' takes none")
        return self

    def check(self, size: tuple[int, int]) -> None:
        """Refuse a patch that does not divide a message's (height, width), or gives too many or only one.

        Raises:
            ValueError: naming the nearest that do.
        """
        if self.patch is None:
            return
        height, width = size
        valid = [
            p
            for p in range(1, min(size) + 1)
            if height % p == width % p == 0 and 1 < height // p * (width // p) <= _MOST_PATCHES
        ]
        if self.patch not in valid:
            near = " or ".join(str(p) for p in sorted(sorted(valid, key=lambda p: abs(p - self.patch))[:2]))  # type: ignore[operator]
            raise ValueError(
                f"layout: a patch of {self.patch} does not cut the message's {height}×{width} into 2 to "
                f"{_MOST_PATCHES:,} equal squares; "
                + (f"take {near}" if near else "no patch does: keep the layout")
            )

    @property
    def text(self) -> str:
        """In words: `kept`, or such as `shuffled 8×8, mirrored`."""
        if self.patch is None:
            return "kept"
        return f"shuffled {self.patch}×{self.patch}" + (", mirrored" if self.mirror else "")


class ReleaseConfig(Strict):
    """What fixes a release, given the record, its id and the noise key. Its hash is `release_hash`.

    Attributes:
        input: preprocessing.
        ir_shape: of φ(x), `(c, h, w)`.
        backbone: hash and provenance of φ.
        basis: the channel basis.
        crop: the spatial basis.
        offload: the stream that feeds the message.
        message: the message map.
        bounding: how the norm is bounded.
        sigma: standard deviation of the noise on the bounded message; none for `noise: none`.
        layout: whether the bits stay where they lie; left out of the JSON, and so of the hash, where they do.
        mechanism: identifier of the mechanism's version; a layout that is shuffled has its own.
    """

    input: InputSpec
    ir_shape: tuple[int, int, int]
    backbone: Component
    basis: BasisConfig
    crop: CropConfig
    offload: Literal["residual", "principal"] = "residual"
    message: MessageConfig
    bounding: Bounding = Bounding()
    sigma: float | None = Field(gt=0)
    layout: LayoutConfig = LayoutConfig()
    mechanism: Literal["delta/one-bit/1", "delta/one-bit-shuffled/1"] = "delta/one-bit/1"

    @model_validator(mode="after")
    def _layout_fits(self) -> Self:
        if (self.layout.kind == "shuffled") != (self.mechanism == SHUFFLED_MECHANISM):
            raise ValueError(
                f"mechanism {SHUFFLED_MECHANISM!r} belongs to layout 'shuffled', and to no other"
            )
        self.layout.check(self.message.shape[1:])
        return self

    @model_serializer(mode="wrap")
    def _without_a_kept_layout(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Configurations from before there were layouts keep their hash, and their readers."""
        value: dict[str, Any] = handler(self)
        if self.layout.kind == "kept":
            value.pop("layout", None)
        return value

    @property
    def release_hash(self) -> str:
        """SHA-256 in hex of the canonical JSON."""
        return self.content_hash()

    @property
    def stream_shape(self) -> tuple[int, int, int]:
        """Shape of a record's offloaded stream: `(c, h, w)` of the residual, `(r, h', w')` of the principal part."""
        channels, height, width = self.ir_shape
        if self.offload == "residual":
            return channels, height, width
        block, keep = self.crop.block, self.crop.keep
        return self.basis.rank, height // block * keep, width // block * keep

    @property
    def message_stride(self) -> int:
        """Of a learned map, s: how many times narrower the message is than the stream; 1 of a fixed one."""
        if self.message.map != "learned":
            return 1
        return max(1, self.stream_shape[2] // self.message.shape[2])

    @property
    def keyed(self) -> bool:
        """Whether a noise key has a part in the bits: where there is noise, or a random order."""
        return self.sigma is not None or self.layout.kind == "shuffled"

    @property
    def patches(self) -> int:
        """Patches a record; 1 where the layout is kept."""
        _, height, width = self.message.shape
        patch = self.layout.patch
        return 1 if patch is None else height // patch * (width // patch)

    @property
    def bits(self) -> int:
        """Bits a record: k · h_m · w_m."""
        k, height, width = self.message.shape
        return k * height * width

    @property
    def payload_bytes(self) -> int:
        """Packed bytes a record; only the record's end is padded."""
        return -(-self.bits // 8)

    @property
    def provenances(self) -> dict[str, Provenance]:
        """Provenance of each part that the claim rests on."""
        return {
            "backbone": self.backbone.provenance,
            "basis": self.basis.component.provenance,
            "message map": self.message.component.provenance,
            "clip norm": self.bounding.provenance,
        }
