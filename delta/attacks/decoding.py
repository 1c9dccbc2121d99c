"""Training the reconstruction attack on the attacker's own records, and drawing the victims' with it."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from delta.attacks.metrics import smooth_ssim
from delta.attacks.tap import Tap, generator_on
from delta.errors import ConfigError
from delta.models.unet import UNet
from delta.release.config import InputSpec
from delta.training.fit import Progress, placed, quiet

__all__ = [
    "DecoderSettings",
    "Pairs",
    "TrainedDecoder",
    "draw",
    "drawing_loss",
    "fit_decoder",
    "precision_on",
]

_SAMPLE = 1024
"""Records from which the scale of the observations is taken."""


@dataclass(frozen=True)
class DecoderSettings:
    """How strong the attack is.

    Attributes:
        epochs: passes over the attacker's records.
        width: channels of the U-Net's first level.
        batch: pairs a step.
        learning_rate: highest of the one-cycle schedule.
        flips: mirror half of the images left to right; none does so for images in colour.
        seed: of weights, order, mirrors and simulated noise.
    """

    epochs: int = 30
    width: int = 48
    batch: int = 128
    learning_rate: float = 2e-3
    flips: bool | None = None
    seed: int = 0


@dataclass(frozen=True)
class TrainedDecoder:
    """A decoder, and what its training took.

    Attributes:
        model: in eval mode.
        epochs: passes.
        records: of the attacker.
        parameters: of the model.
        seconds: of training.
        loss: mean over the last epoch.
    """

    model: UNet
    epochs: int
    records: int
    parameters: int
    seconds: float
    loss: float

    def to_json(self) -> dict[str, float]:
        """The figures."""
        return {
            "epochs": self.epochs,
            "records": self.records,
            "parameters": self.parameters,
            "seconds": self.seconds,
            "loss": self.loss,
        }


def drawing_loss(drawn: Tensor, images: Tensor) -> Tensor:
    """L1 + MSE + (1 − SSIM), a mean over images `[n, c, h, w]`: the attack raises the number it is scored by."""
    gap = drawn - images
    return gap.abs().mean() + gap.square().mean() + 1 - smooth_ssim(images, drawn).mean()


def fit_decoder(
    tap: Tap,
    images: Tensor,
    input: InputSpec,
    *,
    looks: int = 1,
    settings: DecoderSettings = DecoderSettings(),
    progress: Progress = quiet,
    stage: str = "decoder",
) -> TrainedDecoder:
    """Train a U-Net on pairs of observation and image.

    The mechanism is in the loop: every step draws fresh noise, on images that may be mirrored. Where a tap is too
    slow for that, each image (and its mirror) is observed once.

    Args:
        tap: what the attacker sees.
        images: its own, `[n, c, h, w]` in [0, 1], on the device where everything runs.
        input: preprocessing.
        looks: observations a record.
        settings: strength.
        progress: told after every step.
        stage: the name it is told.

    Raises:
        ConfigError: fewer than 2 records, or the loss is not finite.
    """
    if len(images) < 2:
        raise ConfigError(f"a decoder needs 2 records of the attacker's own at least, got {len(images)}")
    device, started = images.device, time.perf_counter()
    flips = images.shape[1] == 3 if settings.flips is None else settings.flips
    noise = generator_on(device, settings.seed + 1)
    order = torch.Generator().manual_seed(settings.seed + 2)
    pairs = Pairs(tap, images, input, looks=looks, flips=flips, noise=noise)
    sample = pairs.observe(torch.arange(min(_SAMPLE, len(images)), device=device), None)
    centre, scale = sample.mean((0, 2, 3)), sample.std((0, 2, 3)).clamp_min(1e-6)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        model = UNet(tap.shape, mean=images.mean(0), centre=centre, scale=scale, width=settings.width)
        model = placed(model.to(device), device)
        batch = min(settings.batch, len(images))
        starts = range(0, len(images) - batch + 1, batch)
        total = settings.epochs * len(starts)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=1e-3, foreach=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=settings.learning_rate, total_steps=max(total, 6), pct_start=0.2
        )
        model.train()
        losses: list[Tensor] = []
        for epoch in range(settings.epochs):
            places = torch.randperm(len(images), generator=order)
            losses = []
            for number, start in enumerate(starts, 1):
                index = places[start : start + batch].to(device)
                mirror = (torch.rand(batch, generator=order) < 0.5).to(device) if flips else None
                observed, target = pairs.observe(index, mirror), pairs.target(index, mirror)
                with precision_on(device):
                    drawn = model(observed)
                loss = drawing_loss(drawn.float(), target)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.detach())
                progress(stage, epoch * len(starts) + number, total)
    last = float(torch.stack(losses).mean()) if losses else math.nan
    if losses and not math.isfinite(last):
        raise ConfigError(f"{stage}: the loss is not finite; take a smaller learning rate")
    model.eval()
    parameters = sum(p.numel() for p in model.parameters())
    return TrainedDecoder(
        model, settings.epochs, len(images), parameters, time.perf_counter() - started, last
    )


def draw(decoder: UNet, observed: Tensor, *, batch: int = 256) -> Tensor:
    """Images `[n, c, h, w]` float32 in [0, 1] drawn from observations `[n, *shape]`."""
    with torch.no_grad(), precision_on(observed.device):
        return torch.cat([decoder(part).float() for part in torch.split(observed, batch)])


class Pairs:
    """The attacker's pairs of observation and image: observed anew in every step, or once.

    Args:
        tap: what it sees.
        images: its own, `[n, c, h, w]` in [0, 1].
        input: preprocessing.
        looks: observations a record.
        flips: whether mirrored images will be asked for.
        noise: of the simulation, on the images' device.
    """

    def __init__(
        self,
        tap: Tap,
        images: Tensor,
        input: InputSpec,
        *,
        looks: int,
        flips: bool,
        noise: torch.Generator,
    ) -> None:
        self._tap, self._images, self._input = tap, images, input
        self._looks, self._noise = looks, noise
        self._stored: list[Tensor] = []
        if not tap.in_loop:
            views = [images, images.flip(3)] if flips else [images]
            self._stored = [
                tap.simulate(input.preprocess(view), looks=looks, generator=noise) for view in views
            ]

    def target(self, index: Tensor, mirror: Tensor | None) -> Tensor:
        """Images at `index` `[b]`, those marked in `mirror` `[b]` mirrored; none mirrors nothing."""
        return _mirrored(self._images[index], mirror)

    def observe(self, index: Tensor, mirror: Tensor | None) -> Tensor:
        """What the tap shows of them, `[b, *shape]`."""
        if not self._stored:
            x = self._input.preprocess(self.target(index, mirror))
            return self._tap.simulate(x, looks=self._looks, generator=self._noise)
        seen = self._stored[0][index]
        if mirror is None:
            return seen
        return torch.where(mirror[:, None, None, None], self._stored[1][index], seen)


def _mirrored(images: Tensor, mirror: Tensor | None) -> Tensor:
    return images if mirror is None else torch.where(mirror[:, None, None, None], images.flip(3), images)


def precision_on(device: torch.device) -> AbstractContextManager[Any]:
    """Half precision in matrix products where there is an accelerator."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
