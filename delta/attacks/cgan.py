"""The paper's reconstruction attack: a conditional GAN that draws an image from what a tap shows and from noise.

The authors describe a generator conditioned on the release and a discriminator, and an adversarial loss alone; theirs
does not run as released. Here the loss is the hinge (Lim & Ye 2017, arXiv 1705.02894) on a discriminator of pairs with
spectral normalisation (Miyato et al. 2018, arXiv 1802.05957), which also has to refuse images beside another record's
observation (Reed et al. 2016, arXiv 1605.05396). An L1 term may be added, as in pix2pix (Isola et al. 2017, arXiv
1611.07004).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from delta.attacks.decoding import DecoderSettings, Pairs, precision_on
from delta.attacks.tap import Tap, generator_on
from delta.errors import ConfigError
from delta.models.unet import UNet
from delta.release.config import InputSpec
from delta.training.fit import Progress, placed, quiet

__all__ = ["L1", "Critic", "Generator", "TrainedGenerator", "draw_samples", "fit_cgan"]

L1 = 100.0
"""Weight of the L1 term beside the adversarial one: pix2pix'."""
_SAMPLE = 1024
"""Records from which the scale of the observations is taken."""
_SMALLEST = 4
"""Pixels at which the critic stops halving."""
_BETAS = (0.5, 0.999)
_SLOPE = 0.2


class Generator(nn.Module):
    """Observations `[n, *observation]` and noise of their height and width to images in [0, 1].

    The decoder's own U-Net with one channel more; it starts as the mean image.

    Args:
        observation: `(channels, height, width)` of what the tap shows.
        mean: mean image of the attacker's own records, `[channels, height, width]` in [0, 1].
        centre: mean of the observations, a channel, `[channels]`.
        scale: their standard deviation, a channel, `[channels]`.
        width: channels of the first level.
    """

    def __init__(
        self, observation: tuple[int, int, int], *, mean: Tensor, centre: Tensor, scale: Tensor, width: int
    ) -> None:
        super().__init__()
        k, height, width_px = observation
        self.unet = UNet(
            (k + 1, height, width_px),
            mean=mean,
            centre=torch.cat([centre, centre.new_zeros(1)]),
            scale=torch.cat([scale, scale.new_ones(1)]),
            width=width,
        )

    def forward(self, observed: Tensor, noise: Tensor) -> Tensor:
        """Draw from observations and standard normal noise `[n, 1, h, w]`."""
        drawn: Tensor = self.unet(torch.cat([observed, noise], dim=1))
        return drawn


class Critic(nn.Module):
    """Pairs of image and observation to scores `[n, 1, h', w']`: above 0 for an image that belongs to it.

    Args:
        observation: `(channels, height, width)` of what the tap shows.
        image: `(channels, height, width)`.
        centre: mean of the observations, a channel, `[channels]`.
        scale: their standard deviation, a channel, `[channels]`.
        width: channels of the first level.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        observation: tuple[int, int, int],
        image: tuple[int, int, int],
        *,
        centre: Tensor,
        scale: Tensor,
        width: int,
    ) -> None:
        super().__init__()
        self.register_buffer("centre", centre.detach().clone())
        self.register_buffer("scale", scale.detach().clone())
        self.size = (image[1], image[2])
        self.read = _bounded(observation[0], width)
        self.look = _bounded(image[0], width)
        layers: list[nn.Module] = [nn.LeakyReLU(_SLOPE)]
        channels, side = 2 * width, min(self.size)
        while side > _SMALLEST:
            wider = min(8 * width, 2 * channels)
            layers += [_bounded(channels, wider, stride=2), nn.LeakyReLU(_SLOPE)]
            channels, side = wider, -(-side // 2)
        layers.append(_bounded(channels, 1))
        self.judge = nn.Sequential(*layers)

    def forward(self, images: Tensor, observed: Tensor) -> Tensor:
        """Judge images `[n, c, h, w]` in [0, 1] beside observations."""
        seen = self.read((observed - self.centre[:, None, None]) / self.scale[:, None, None])
        if tuple(seen.shape[2:]) != self.size:
            seen = nn.functional.interpolate(seen, size=self.size, mode="bilinear", align_corners=False)
        scores: Tensor = self.judge(torch.cat([self.look(2 * images - 1), seen], dim=1))
        return scores


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator, and what its training took.

    Attributes:
        model: in eval mode.
        l1: weight of the L1 term; 0 is the adversarial loss alone.
        epochs: passes.
        records: of the attacker.
        parameters: of the generator alone.
        seconds: of training, the critic's included.
        loss: the generator's, mean over the last epoch.
        critic_loss: mean over the last epoch; 2 is a critic that tells nothing.
    """

    model: Generator
    l1: float
    epochs: int
    records: int
    parameters: int
    seconds: float
    loss: float
    critic_loss: float

    def to_json(self) -> dict[str, float]:
        """The figures."""
        return {
            "l1": self.l1,
            "epochs": self.epochs,
            "records": self.records,
            "parameters": self.parameters,
            "seconds": self.seconds,
            "loss": self.loss,
            "critic_loss": self.critic_loss,
        }


def fit_cgan(
    tap: Tap,
    images: Tensor,
    input: InputSpec,
    *,
    l1: float,
    looks: int = 1,
    settings: DecoderSettings = DecoderSettings(),
    progress: Progress = quiet,
    stage: str = "conditional GAN",
) -> TrainedGenerator:
    """Train generator and critic in turn, a step each, with the mechanism in the loop as for the decoder.

    Args:
        tap: what the attacker sees.
        images: its own, `[n, c, h, w]` in [0, 1], on the device where everything runs.
        input: preprocessing.
        l1: weight of the mean absolute difference from the original; 0 leaves it out, as the paper does.
        looks: observations a record.
        settings: strength.
        progress: told after every step.
        stage: the name it is told.

    Raises:
        ConfigError: fewer than 2 records, or a loss is not finite.
    """
    if len(images) < 2:
        raise ConfigError(
            f"a conditional GAN needs 2 records of the attacker's own at least, got {len(images)}"
        )
    device, started = images.device, time.perf_counter()
    flips = images.shape[1] == 3 if settings.flips is None else settings.flips
    noise = generator_on(device, settings.seed + 1)
    order = torch.Generator().manual_seed(settings.seed + 2)
    pairs = Pairs(tap, images, input, looks=looks, flips=flips, noise=noise)
    sample = pairs.observe(torch.arange(min(_SAMPLE, len(images)), device=device), None)
    centre, scale = sample.mean((0, 2, 3)), sample.std((0, 2, 3)).clamp_min(1e-6)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        generator = Generator(
            tap.shape, mean=images.mean(0), centre=centre, scale=scale, width=settings.width
        )
        channels, height, width_px = images.shape[1:]
        critic = Critic(
            tap.shape, (channels, height, width_px), centre=centre, scale=scale, width=settings.width
        )
        generator, critic = placed(generator.to(device), device), placed(critic.to(device), device)
        batch = min(settings.batch, len(images))
        total = settings.epochs * (len(images) // batch)
        game = _Game(generator, critic, l1=l1, rate=settings.learning_rate, steps=total, noise=noise)
        losses: list[Tensor] = []
        for step, index in enumerate(_batches(len(images), batch, settings.epochs, order)):
            index = index.to(device)
            mirror = (torch.rand(batch, generator=order) < 0.5).to(device) if flips else None
            losses.append(game.play(pairs.observe(index, mirror), pairs.target(index, mirror)))
            progress(stage, step + 1, total)
    ours, theirs = torch.stack(losses[-(len(images) // batch) :]).mean(0).tolist()
    if not math.isfinite(ours) or not math.isfinite(theirs):
        raise ConfigError(f"{stage}: a loss is not finite; take a smaller learning rate")
    return TrainedGenerator(
        model=generator.eval(),
        l1=l1,
        epochs=settings.epochs,
        records=len(images),
        parameters=sum(p.numel() for p in generator.parameters()),
        seconds=time.perf_counter() - started,
        loss=ours,
        critic_loss=theirs,
    )


@torch.no_grad()
def draw_samples(model: Generator, observed: Tensor, *, seed: int, batch: int = 256) -> Tensor:
    """One image each, `[n, c, h, w]` float32 in [0, 1], from observations `[n, *shape]` and seeded noise."""
    noise = generator_on(observed.device, seed)
    with precision_on(observed.device):
        return torch.cat([model(part, _normal(part, noise)).float() for part in torch.split(observed, batch)])


class _Game:
    """The two models and their steps.

    Args:
        generator: draws.
        critic: judges.
        l1: weight of the L1 term.
        rate: of both models' steps; in the second half of the training it falls to 0.
        steps: in all.
        noise: of the drawings, on the models' device.
    """

    def __init__(
        self,
        generator: Generator,
        critic: Critic,
        *,
        l1: float,
        rate: float,
        steps: int,
        noise: torch.Generator,
    ) -> None:
        self._generator, self._critic = generator.train(), critic.train()
        self._l1, self._noise = l1, noise
        self._optimizers = [
            torch.optim.Adam(model.parameters(), lr=lr, betas=_BETAS, foreach=True)
            for model, lr in ((generator, rate), (critic, rate))
        ]
        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(1.0, 2 - 2 * step / max(1, steps)))
            for o in self._optimizers
        ]

    def play(self, observed: Tensor, images: Tensor) -> Tensor:
        """A step of the critic, then one of the generator: their losses, `[2]`, the generator's first."""
        with precision_on(images.device):
            drawn = self._generator(observed, _normal(observed, self._noise))
            real = self._critic(images, observed).float()
            false = self._critic(drawn.detach(), observed).float()
            astray = self._critic(images, observed.roll(1, 0)).float()
        theirs = (1 - real).relu().mean() + ((1 + false).relu().mean() + (1 + astray).relu().mean()) / 2
        self._step(1, theirs)
        self._critic.requires_grad_(False)
        with precision_on(images.device):
            score = self._critic(drawn, observed).float()
        ours = -score.mean()
        if self._l1:
            ours = ours + self._l1 * (drawn.float() - images).abs().mean()
        self._step(0, ours)
        self._critic.requires_grad_(True)
        return torch.stack([ours.detach(), theirs.detach()])

    def _step(self, which: int, loss: Tensor) -> None:
        self._optimizers[which].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizers[which].step()
        self._schedules[which].step()


def _batches(records: int, batch: int, epochs: int, order: torch.Generator) -> Iterator[Tensor]:
    """Places of the records of each step; what is left of an epoch is left out."""
    for _ in range(epochs):
        places = torch.randperm(records, generator=order)
        for start in range(0, records - batch + 1, batch):
            yield places[start : start + batch]


def _normal(observed: Tensor, generator: torch.Generator) -> Tensor:
    n, _, height, width = observed.shape
    return torch.randn(n, 1, height, width, generator=generator, device=observed.device)


def _bounded(inputs: int, outputs: int, *, stride: int = 1) -> nn.Module:
    """A 3×3 convolution whose largest singular value is kept at one."""
    return spectral_norm(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1))
