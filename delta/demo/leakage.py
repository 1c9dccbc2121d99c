"""What the cloud could make of a row's releases: guess the label, match a candidate, draw the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from delta.attacks.decoder import reconstruct, train_decoder
from delta.attacks.matching import MatchResult, match_candidates
from delta.attacks.metrics import ssim
from delta.release.bounding import normalise
from delta.release.message import message_of
from delta.release.noise import NoiseKey
from delta.release.packing import unpack_bits
from delta.training.cloud_stage import CloudStage
from delta.training.fit import Progress
from delta.training.private_stage import Labelled
from delta.training.uploads import release_records

_DECODER_EPOCHS = 5
"""Few enough that two idle cores finish them before time is up, so that the figure does not depend on the clock."""

__all__ = ["Leakage", "measure_leakage", "messages_of"]


@dataclass(frozen=True)
class Leakage:
    """What an honest-but-curious cloud gets from one row's releases.

    Attributes:
        cloud_label_accuracy: percent of labels that the cloud model guesses by itself.
        prior: percent that guessing the commonest class gives.
        match: candidate matching, the backbone known.
        ssim: mean SSIM of the decoder's drawings.
        ssim_floor: of the mean training image, which needs no release.
        drawings: `[n, c, h, w]` in [0, 1].
        each_ssim: of every test record, `[n]`.
    """

    cloud_label_accuracy: float
    prior: float
    match: MatchResult
    ssim: float
    ssim_floor: float
    drawings: Tensor
    each_ssim: Tensor


@torch.inference_mode()
def messages_of(stage: CloudStage, x: Tensor, *, batch: int = 256) -> Tensor:
    """The bounded messages of preprocessed records, `[n, d]` float64: what an attacker computes for a candidate."""
    parts, found = stage.private, []
    for part in torch.split(x, batch):
        phi = parts.backbone(part)
        _, message = message_of(
            phi, decomposer=parts.decomposer, message=parts.message, offload=stage.release.offload
        )
        found.append(normalise(message, stage.release.bounding.clip_norm).flatten(1))
    return torch.cat(found)


def measure_leakage(
    stage: CloudStage,
    *,
    auxiliary: Labelled,
    auxiliary_images: Tensor,
    test: Labelled,
    test_images: Tensor,
    payloads: Tensor,
    z_cloud: Tensor,
    seconds: float,
    seed: int,
    progress: Progress,
    label: str,
) -> Leakage:
    """Attack one row.

    Args:
        stage: the row's stage 2.
        auxiliary: the attacker's own records, disjoint from the test records; the training set here.
        auxiliary_images: their images `[m, c, h, w]` in [0, 1].
        test: the records attacked.
        test_images: their images.
        payloads: what crossed the boundary for them, `[n, B]`.
        z_cloud: the cloud's own logits for them.
        seconds: for the decoder.
        seed: of the decoder.
        progress: told while it trains.
        label: the name it is told.
    """
    shape = stage.release.message.shape
    bits = unpack_bits(payloads, shape)
    match = match_candidates(
        bits.flatten(1), messages_of(stage, test.x), torch.arange(len(test.y)), sigma=stage.release.sigma
    )
    # The attacker knows the mechanism but not the owner's key: pairs of its own images under a key of its own.
    own = release_records(stage.private, stage.release, auxiliary, key=NoiseKey.generate())
    decoder = train_decoder(
        _signs(own, shape),
        auxiliary_images,
        seconds=seconds,
        epochs=_DECODER_EPOCHS,
        seed=seed,
        progress=progress,
        stage=label,
    )
    drawings = reconstruct(decoder, _signs(payloads, shape))
    each = ssim(test_images, drawings)
    floor = ssim(test_images, auxiliary_images.mean(0, keepdim=True).expand_as(test_images))
    counts = test.y.bincount()
    return Leakage(
        cloud_label_accuracy=100.0 * float((z_cloud.argmax(1) == test.y).double().mean()),
        prior=100.0 * float(counts.max()) / len(test.y),
        match=match,
        ssim=float(each.mean()),
        ssim_floor=float(floor.mean()),
        drawings=drawings,
        each_ssim=each,
    )


def _signs(payloads: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return unpack_bits(payloads, shape).float() * 2 - 1
