"""The audited configuration: a network so plain that the worst pair of images is known exactly.

A transparent backbone passes two channels through; the principal part takes the first, the residual is the
second; the message is the mean over channels. An impulse of either sign in the second channel then gives the
messages ±C·e, all of it in one coordinate. There one bit is the optimal test itself, sign(±C + N(0, σ²)),
and the audit loses nothing to it; a message spread over many bits would lose a factor of up to √(2/π).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from delta.bundle.manifest import Architecture, Manifest, PrivateFacts
from delta.bundle.store import Bundle, weights_hash
from delta.decomposition.decomposer import Decomposer
from delta.methods.delta.cloud import build_cloud_model
from delta.methods.delta.parts import PrivateParts, build_backbone
from delta.models.macs import count_macs, front_macs
from delta.models.main_model import build_main
from delta.models.private_path import private_peak
from delta.privacy.gaussian import sigma_for
from delta.release.components import component_hash, computation_hash
from delta.release.config import (
    BasisConfig,
    Component,
    CropConfig,
    InputSpec,
    MessageConfig,
    Provenance,
    ReleaseConfig,
)
from delta.release.message import MessageMap

__all__ = ["SIDE", "TransparentNet", "audited_bundle", "transparent_net"]

SIDE = 8
"""Height and width of an audited image: 64 bits a release."""
_CHANNELS, _CLASSES, _KEEP = 2, 2, 4
_STD = 1 / 12
"""Of the preprocessing: a pixel of 0 or 1 becomes −6 or 6, and the message before it is bounded has norm 3."""
_TARGET = Architecture(target="delta.attacks.audit.network:transparent_net", split_at="body")


class TransparentNet(nn.Module):
    """A stem that changes nothing, then the least of a body: `[n, 2, 8, 8] → [n, 2]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Identity()
        self.body = nn.Conv2d(_CHANNELS, _CLASSES, SIDE)

    def forward(self, x: Tensor) -> Tensor:
        """Records → logits."""
        logits: Tensor = self.body(self.stem(x)).flatten(1)
        return logits


def transparent_net() -> TransparentNet:
    """The whole model; its weights are a function of a constant."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TransparentNet()


def audited_bundle(*, epsilon: float, delta: float) -> Bundle:
    """A whole bundle of the method `delta` around the transparent network, with C = 1 and `normalise`.

    Args:
        epsilon: of a release, at `delta`.
        delta: δ.

    Raises:
        PrivacyParameterError: ε or δ is out of range.
    """
    record_shape = (_CHANNELS, SIDE, SIDE)
    decomposer = Decomposer(
        channels=_CHANNELS,
        height=SIDE,
        width=SIDE,
        rank=1,
        block=SIDE,
        keep=_KEEP,
        kind="pca",
        basis=torch.tensor([[1.0], [0.0]]),
    )
    message = MessageMap("channel-mean", channels=_CHANNELS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        main = build_main(
            layout="light", in_channels=1, size=(_KEEP, _KEEP), classes=_CLASSES, width=2, blocks=1
        )
    constant = Provenance(kind="data-independent", note="a constant of the audit")
    facts = {"main": main.settings, "fusion": "sum", "alpha": 1.0, "alpha_max": 1.0}
    draft = ReleaseConfig(
        input=InputSpec(shape=record_shape, mean=(0.5,) * _CHANNELS, std=(_STD,) * _CHANNELS),
        ir_shape=record_shape,
        backbone=Component(hash="0" * 64, provenance=constant),
        basis=BasisConfig(
            kind="pca",
            rank=1,
            component=Component(hash=component_hash(decomposer.state_dict()), provenance=constant),
        ),
        crop=CropConfig(block=SIDE, keep=_KEEP),
        message=MessageConfig(
            map="channel-mean",
            shape=(1, SIDE, SIDE),
            component=Component(hash=component_hash(message.state_dict()), provenance=constant),
        ),
        sigma=sigma_for(epsilon=epsilon, delta=delta, clip_norm=1.0),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        cloud_model = build_cloud_model(_TARGET, draft, allowed={_TARGET.target}).eval()
    cloud = dict(cloud_model.state_dict())

    def manifest_of(release: ReleaseConfig) -> Manifest:
        return Manifest.sealed(
            name="audited",
            method="delta",
            input=release.input,
            class_names=("no", "yes"),
            architecture=_TARGET,
            release=release,
            logit_bound=10.0,
            labels="none",
            cloud_weights_hash=weights_hash(cloud),
        )

    counts = {"private_macs": 0, "cloud_macs": 0, "peak_private_bytes": 0}
    blank = PrivateFacts.parse({**facts, **counts, "weights_hash": ""}, what="facts of the audited network")
    backbone = build_backbone(manifest_of(draft), blank, allowed={_TARGET.target}).eval()
    release = draft.model_copy(
        update={"backbone": Component(hash=computation_hash(backbone), provenance=constant)}
    )
    private = PrivateParts(backbone, decomposer, message, main).eval()
    record = torch.zeros(1, *record_shape)
    counts = {
        "private_macs": front_macs(backbone, decomposer, record, k=1)
        + count_macs(main, torch.zeros(1, *decomposer.main_shape)),
        "cloud_macs": count_macs(cloud_model, torch.zeros(1, release.payload_bytes, dtype=torch.uint8)),
        "peak_private_bytes": private_peak(
            record, backbone=backbone, decomposer=decomposer, message=message, main=main, offload="residual"
        ),
    }
    weights = private.tensors()
    whole = PrivateFacts.parse(
        {**facts, **counts, "weights_hash": weights_hash(weights)}, what="facts of the audited network"
    )
    return Bundle(manifest_of(release), whole, weights, cloud, made_here=True)
