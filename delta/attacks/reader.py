"""The attacker's own reader of observations: a network that is taught to answer a question about a record."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delta.attacks.tap import Tap, generator_on
from delta.errors import ConfigError
from delta.models.resnet import ResNet, resnet_small
from delta.release.config import InputSpec
from delta.training.config import FitConfig
from delta.training.fit import Progress, augmented, fit, placed, quiet

__all__ = ["Reader", "train_reader"]

_BATCH = 256
_LEAST = 8  # pixels below which a network of three stages has nothing to read
_SHIFT = 2


@dataclass(frozen=True)
class Reader:
    """A trained reader.

    Attributes:
        model: in eval mode, on the attacker's device.
        epochs: passes.
        records: of the attacker.
    """

    model: nn.Module
    epochs: int
    records: int

    @torch.no_grad()
    def answers(self, observed: Tensor) -> Tensor:
        """Its answer to each observation `[n, *shape]`: `[n]` int64 on the CPU."""
        return torch.cat([self.model(part).argmax(1).cpu() for part in torch.split(observed, _BATCH)])


class _Net(nn.Module):
    """Observations `[n, *shape]` → logits `[n, classes]`; small ones are enlarged."""

    def __init__(self, body: ResNet, shape: tuple[int, int, int], *, centre: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.body, self.factor = body, -(-_LEAST // min(shape[1:]))
        self.register_buffer("centre", centre[:, None, None].clone())
        self.register_buffer("scale", scale[:, None, None].clone())

    centre: Tensor
    scale: Tensor

    def forward(self, observed: Tensor) -> Tensor:
        x = (observed - self.centre) / self.scale
        if self.factor > 1:
            x = nn.functional.interpolate(x, scale_factor=float(self.factor), mode="nearest")
        logits: Tensor = self.body(x)
        return logits


def train_reader(
    tap: Tap,
    images: Tensor,
    answers: Tensor,
    input: InputSpec,
    *,
    classes: int,
    epochs: int,
    looks: int = 1,
    width: int | None = None,
    batch: int = 128,
    seed: int = 0,
    progress: Progress = quiet,
    stage: str = "reader",
) -> Reader:
    """Teach a small ResNet on the attacker's own records, with the mechanism in the loop.

    Every step shifts its images (and mirrors those in colour) and draws fresh noise; of a tap that is too slow for
    that, each record is observed once.

    Args:
        tap: what the attacker sees.
        images: its own, `[n, c, h, w]` in [0, 1], on the device where everything runs.
        answers: to the question, `[n]` int64 below `classes`.
        input: preprocessing.
        classes: possible answers.
        epochs: passes.
        looks: observations a record.
        width: of the ResNet's first stage; none for 64 where images are in colour, else 16.
        batch: records a step.
        seed: of weights, order, augmentation and simulated noise.
        progress: told after every step.
        stage: the name it is told.

    Raises:
        ConfigError: fewer than 2 records, or the training failed.
    """
    if len(images) < 2:
        raise ConfigError(f"{stage}: the attacker needs 2 records of its own at least, got {len(images)}")
    device, colour = images.device, images.shape[1] == 3
    noise, generator = generator_on(device, seed + 1), torch.Generator().manual_seed(seed)
    answers = answers.to(device)
    how = "shift+flip" if colour else "shift"

    @torch.no_grad()
    def observe(some: Tensor) -> Tensor:
        return tap.simulate(input.preprocess(some), looks=looks, generator=noise)

    stored = None if tap.in_loop else observe(images)
    sample = observe(images[:1024]) if stored is None else stored
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = resnet_small(
            classes=classes,
            in_channels=tap.shape[0],
            width=(64 if colour else 16) if width is None else width,
        )
    centre, scale = sample.mean((0, 2, 3)), sample.std((0, 2, 3)).clamp_min(1e-6)
    model = placed(_Net(body, tap.shape, centre=centre, scale=scale).to(device), device)

    def forward(net: nn.Module, index: Tensor) -> Tensor:
        places = index.to(device)
        if stored is not None:
            return net(stored[places])  # type: ignore[no-any-return]
        return net(observe(augmented(images[places], how, generator=generator, shift=_SHIFT)))  # type: ignore[no-any-return]

    fit(
        model,
        forward,
        lambda logits, index: nn.functional.cross_entropy(logits, answers[index.to(device)]),
        records=len(images),
        config=FitConfig(epochs=epochs, batch=batch),
        generator=generator,
        progress=progress,
        stage=stage,
        precision="bfloat16" if device.type == "cuda" else "float32",
    )
    return Reader(model.requires_grad_(False), epochs, len(images))
