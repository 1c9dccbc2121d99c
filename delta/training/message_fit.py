"""Fitting a learned message map on the private side: keep what tells classes apart, drop what draws the image.

Three models train together on the mechanism's own bits b, behind a frozen backbone and basis:

    stream ─W─▶ m ─bound, one bit─▶ b ─┬─▶ classifier C: cross-entropy, a stand-in for the cloud
                                       └─▶ decoder D: R, how far its drawing is from the image

C and D minimise their own losses; the map W minimises CE − λ·min(R, R₀), record by record. R₀ is the loss of the
best picture that sees no bits, which is fitted beside them: a decoder that does worse than it teaches W nothing, so
that the game cannot run away. D's gradient reaches W reversed (Ganin & Lempitsky 2015, arXiv 1409.7495; of
representations that hide an attribute, Edwards & Storkey 2016, arXiv 1511.05897), and passes the bit as if it were
its expectation (Bengio et al. 2013, arXiv 1308.3432). Nothing here leaves: the cloud sees neither C nor D.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from delta.decomposition.decomposer import Decomposer
from delta.errors import ConfigError
from delta.models.crop import crop_for
from delta.models.macs import count_macs
from delta.models.main_model import build_main, light_budget
from delta.models.similarity import smooth_ssim
from delta.models.splitting import Parts
from delta.models.unet import UNet
from delta.release.config import Bounding, InputSpec, Provenance
from delta.release.message import MessageMap, check_stride
from delta.training.checkpoint import FitStore
from delta.training.config import LearnedMessage, TrainConfig
from delta.training.fit import Progress, augmented, distillation_loss, fit, placed, quiet

__all__ = [
    "MessageGame",
    "drawing_losses",
    "fit_message",
    "learned_map",
    "message_provenance",
    "release_bits",
]

_SMALL = 1e-12
_SURROGATE = 10
"""The classifier may take a tenth of the whole model's MACs; a light main model's default is a hundredth."""


def release_bits(m: Tensor, *, sigma: float | None, bounding: Bounding) -> Tensor:
    """One-bit releases of messages `[b, k, h, w]` as ±1, with gradients to the messages.

    Bounded and drawn as in the release, from torch's random numbers. The gradient is that of the expectation,
    2Φ(m/σ) − 1. Without noise, where that has none, σ is the root mean square of each of a message's channels: a
    sign tells as much of a faint channel as of a loud one, and a map must not seem to drop what it only turns down.

    Args:
        m: messages, unbounded.
        sigma: σ on the bounded message; none without noise.
        bounding: how the norm is bounded.
    """
    if sigma is None:
        chance = torch.special.ndtr(m / m.square().mean((2, 3), keepdim=True).sqrt().clamp_min(_SMALL))
        drawn = m >= 0
    else:
        scale = bounding.clip_norm / m.square().sum((1, 2, 3), keepdim=True).sqrt().clamp_min(_SMALL)
        chance = torch.special.ndtr(
            m * (scale if bounding.kind == "normalise" else scale.clamp(max=1)) / sigma
        )
        drawn = torch.rand_like(chance) < chance
    soft = 2 * chance - 1
    bits: Tensor = soft + (drawn.float() * 2 - 1 - soft).detach()
    return bits


def drawing_losses(drawn: Tensor, images: Tensor) -> Tensor:
    """L1 + MSE + (1 − SSIM) of each drawing, `[b]`; both `[b, c, h, w]` in [0, 1]."""
    gap = (drawn - images).flatten(1)
    return gap.abs().mean(1) + gap.square().mean(1) + 1 - smooth_ssim(images, drawn)


class MessageGame(nn.Module):
    """Map, classifier and decoder in training.

    Args:
        channels: of the stream.
        size: (h, w) of the stream.
        settings: of the map.
        classes: of the classifier.
        classifier_macs: its budget, MACs a record.
        mean: mean image of the training records, `[c, height, width]` in [0, 1].
        sigma: of the release.
        bounding: of the release.

    Raises:
        ConfigError: k or stride do not fit the stream.
    """

    def __init__(
        self,
        *,
        channels: int,
        size: tuple[int, int],
        settings: LearnedMessage,
        classes: int,
        classifier_macs: int,
        mean: Tensor,
        sigma: float | None,
        bounding: Bounding,
    ) -> None:
        super().__init__()
        k, stride = settings.k, settings.stride
        check_stride(stride, size)
        self.stride, self.adversary = stride, settings.adversary
        self._sigma, self._bounding = sigma, bounding
        start = MessageMap("learned", channels=channels, k=k, stride=stride).matrix
        # Orthonormal rows where there is room for them: no channel starts as another's copy.
        self.raw = nn.Parameter(nn.init.orthogonal_(torch.empty_like(start)))
        shape = (size[0] // stride, size[1] // stride)
        self.classifier = build_main(
            layout="light",
            in_channels=k,
            size=shape,
            classes=classes,
            max_macs=light_budget(classifier_macs * 100, in_channels=k, size=shape, classes=classes),
        )
        self.decoder = UNet((k, *shape), mean=mean, width=settings.width)
        self.blank = nn.Parameter(mean.clamp(0.004, 0.996).logit())

    @property
    def matrix(self) -> Tensor:
        """W `[k, channels·s²]`, at the scale of k orthonormal rows.

        Its scale has no meaning, and without noise that of a row has none either: each is then of norm 1.
        """
        rows = torch.linalg.vector_norm(self.raw, dim=1, keepdim=True)
        norm = rows if self._sigma is None else rows.square().mean().sqrt()
        scaled: Tensor = self.raw / norm.clamp_min(_SMALL)
        return scaled

    def bits(self, stream: Tensor) -> Tensor:
        """Releases as ±1, `[b, k, h/s, w/s]`, of streams `[b, channels, h, w]`."""
        with torch.autocast(stream.device.type, enabled=False):
            kernel = self.matrix.view(len(self.raw), stream.shape[1], self.stride, self.stride)
            m = nn.functional.conv2d(stream.float(), kernel, stride=self.stride)
            return release_bits(m, sigma=self._sigma, bounding=self._bounding)

    def forward(self, stream: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """The classifier's logits `[b, classes]`, and what the decoder and the blank picture have to answer for.

        The second is `[b]`, R + R₀ of each record; its gradient reaches the map reversed. Without an adversary it
        is zero, and no decoder runs.

        Args:
            stream: `[b, channels, h, w]`.
            images: `[b, c, height, width]` in [0, 1].
        """
        bits = self.bits(stream)
        logits: Tensor = self.classifier(bits)
        if not self.adversary:
            return logits, torch.zeros(len(bits), device=bits.device)
        seen = bits.view_as(bits)
        drawn = drawing_losses(self.decoder(seen).float(), images)
        blank = drawing_losses(torch.sigmoid(self.blank).expand_as(images), images)
        if seen.requires_grad:
            worth = (drawn < blank).float().detach() * -self.adversary
            seen.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: gradient * worth[:, None, None, None]
            )
        return logits, drawn + blank


def learned_map(config: TrainConfig, parts: Parts, *, matrix: Tensor | None = None) -> MessageMap:
    """The learned map of a run; without weights until they are given.

    Args:
        config: of the run; its message is a `LearnedMessage`.
        parts: the split model.
        matrix: W.

    Raises:
        ConfigError: the message is not a learned one, or k or stride do not fit the offloaded stream.
    """
    settings = config.message
    if not isinstance(settings, LearnedMessage):
        raise ConfigError("only a learned message is fitted; set message: {map: learned}")
    channels, height, width = parts.ir_shape
    if config.offload == "principal":
        block, keep = crop_for(parts.ir_shape, block=config.block, keep=config.keep)
        channels, height, width = config.rank_of(channels), height // block * keep, width // block * keep
    check_stride(settings.stride, (height, width))
    return MessageMap("learned", channels=channels, k=settings.k, stride=settings.stride, matrix=matrix)


def fit_message(
    parts: Parts,
    backbone: nn.Module,
    decomposer: Decomposer,
    *,
    x: Tensor,
    y: Tensor,
    input: InputSpec,
    config: TrainConfig,
    progress: Progress = quiet,
    store: FitStore | None = None,
) -> MessageMap:
    """Fit a map on the training records, behind a frozen backbone and basis; on the CPU, in eval mode.

    Args:
        parts: the split model; its whole model is the teacher.
        backbone: φ, frozen.
        decomposer: with its basis.
        x: preprocessed records `[n, channels, height, width]`, on the device where everything runs.
        y: labels `[n]`.
        input: preprocessing.
        config: of the run; its message is a `LearnedMessage`.
        progress: told after every step.
        store: where a finished fit is taken from, and an interrupted one goes on.

    Raises:
        ConfigError: the message is not a learned one, k or stride do not fit, or the fit failed.
    """
    settings = config.message
    if not isinstance(settings, LearnedMessage):
        raise ConfigError("only a learned message is fitted; set message: {map: learned}")
    residual = config.offload == "residual"
    channels, height, width = decomposer.ir_shape if residual else decomposer.principal_shape
    mean = torch.tensor(input.mean, device=x.device)[:, None, None]
    std = torch.tensor(input.std, device=x.device)[:, None, None]
    teacher = parts.model if settings.distil else None
    with torch.random.fork_rng():
        torch.manual_seed(config.seed + 3)
        game = MessageGame(
            channels=channels,
            size=(height, width),
            settings=settings,
            classes=parts.classes,
            classifier_macs=count_macs(parts.model, x[:1]) // _SURROGATE,
            mean=(x.mean(0) * std + mean).cpu(),
            sigma=config.sigma(clip_norm=config.bounding.clip_norm),
            bounding=config.bounding,
        )
    placed(game, x.device)
    generator = torch.Generator().manual_seed(config.seed + 3)
    latest: list[Tensor] = []  # of the images that `forward` has just drawn: R + R₀, and the teacher's logits

    @torch.no_grad()
    def stream_of(images: Tensor) -> Tensor:
        phi = backbone(images)
        found = decomposer(phi)
        return decomposer.residual(phi, found) if residual else found.principal

    def forward(net: nn.Module, index: Tensor) -> Tensor:
        records = augmented(x[index], config.augment, generator=generator)
        logits, drawn = net(stream_of(records), records * std + mean)
        latest[:] = [drawn]
        if teacher is not None:
            with torch.no_grad():
                latest.append(teacher(records).float())
        return logits  # type: ignore[no-any-return]

    def loss(logits: Tensor, index: Tensor) -> Tensor:
        drawn, *reference = latest
        if reference:
            return distillation_loss(logits, y[index], reference[0]) + drawn.mean()
        return nn.functional.cross_entropy(logits, y[index]) + drawn.mean()

    fit(
        game,
        forward,
        loss,
        records=len(y),
        config=settings.fit,
        generator=generator,
        progress=progress,
        stage="message map",
        checkpoints=store.of("message", _determines(config)) if store else None,
        precision=config.precision,
    )
    return learned_map(config, parts, matrix=game.matrix.detach().cpu()).eval()


def message_provenance(message: MessageMap, config: TrainConfig) -> Provenance:
    """Whom a claim covers that rests on this map."""
    kind: Literal["private", "data-independent"] = "data-independent"
    note = f"a fixed {message.kind} map"
    if isinstance(config.message, LearnedMessage):
        against = (
            f"against a decoder of weight {config.message.adversary:g}"
            if config.message.adversary
            else "for the classes alone"
        )
        kind, note = "private", f"fitted on the training records {against}, frozen before any release"
    return Provenance(kind=kind, note=note)


def _determines(config: TrainConfig) -> dict[str, object]:
    """What a map's fit depends on, as plain JSON: not on the main model, unless that tuned the backbone."""
    front = {**config.private_settings}
    if not config.tune_backbone:
        for name in ("main", "main_fit"):
            front.pop(name)
    return {**front, **config.model_dump(mode="json", include={"message", "offload", "noise", "bounding"})}
