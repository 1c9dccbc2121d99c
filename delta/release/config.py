"""The release configuration: everything that fixes a message and its noise, and nothing else."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from delta.config import Strict

__all__ = [
    "MECHANISM",
    "BasisConfig",
    "Bounding",
    "Component",
    "CropConfig",
    "InputSpec",
    "MessageConfig",
    "Provenance",
    "ReleaseConfig",
]

MECHANISM = "delta/one-bit/1"
"""Identifier of the one-bit mechanism: the threshold rule, the keyed uniform integers and the bit order."""


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
    """The fixed linear map from the offloaded stream to the message.

    Attributes:
        map: `channel-mean` (k = 1), a fixed orthonormal `projection` to k channels, or `all-channels`.
        shape: of the message, `(k, h_m, w_m)`.
        component: hash of the map's matrix, with its provenance.
    """

    map: Literal["channel-mean", "projection", "all-channels"]
    shape: tuple[int, int, int]
    component: Component


class Bounding(Strict):
    """How a message is brought to L2 norm at most C.

    `normalise`: m ← C·m/‖m‖₂ (zero stays zero); `clip`: scaled down only where ‖m‖₂ > C.
    """

    kind: Literal["normalise", "clip"] = "normalise"
    clip_norm: float = Field(default=1.0, gt=0)
    provenance: Provenance = Provenance(kind="data-independent", note="a constant")


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
        mechanism: identifier of the mechanism's version.
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
    mechanism: Literal["delta/one-bit/1"] = "delta/one-bit/1"

    @property
    def release_hash(self) -> str:
        """SHA-256 in hex of the canonical JSON."""
        return self.content_hash()

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
