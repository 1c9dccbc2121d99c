"""A small supervised decoder: it learns to draw the image from its release on the attacker's own pairs.

It is the demonstration's, which has seconds for it. The attack that a claim may rest on is `delta.models.unet`.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from delta.training.fit import Progress, placed, quiet

__all__ = ["Decoder", "reconstruct", "train_decoder"]


def _block(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    )


class Decoder(nn.Module):
    """A two-level U-Net from ±1 bits `[n, k, h_m, w_m]` to images `[n, channels, height, width]` in [0, 1].

    It starts from the mean image of the attacker's own data, so that bits which say nothing give the mean.
    Small enough for a demo; a strong attack has more levels and more epochs, so its score is a lower bound
    on what leaks.

    Args:
        message_shape: `(k, h_m, w_m)`.
        mean: mean image of the attacker's own data, `[channels, height, width]` in [0, 1].
        width: channels of the first level.
    """

    mean_logit: Tensor

    def __init__(self, *, message_shape: tuple[int, int, int], mean: Tensor, width: int = 16) -> None:
        super().__init__()
        image_shape = mean.shape
        self.register_buffer("mean_logit", mean.clamp(0.004, 0.996).logit())
        self.size = image_shape[1:]
        self.enter = _block(message_shape[0], width)
        self.down1 = _block(width, 2 * width, stride=2)
        self.down2 = nn.Sequential(_block(2 * width, 4 * width, stride=2), _block(4 * width, 4 * width))
        self.up1 = _block(6 * width, 2 * width)
        self.up2 = _block(3 * width, width)
        self.leave = nn.Conv2d(width, image_shape[0], 3, padding=1)
        nn.init.zeros_(self.leave.weight)

    def forward(self, bits: Tensor) -> Tensor:
        """±1 bits to images."""
        x = bits
        if tuple(x.shape[2:]) != tuple(self.size):
            x = nn.functional.interpolate(x, size=self.size, mode="nearest")
        first = self.enter(x)
        second = self.down1(first)
        third = self.down2(second)
        y = self.up1(torch.cat([_resize(third, second), second], dim=1))
        y = self.up2(torch.cat([_resize(y, first), first], dim=1))
        return torch.sigmoid(self.mean_logit + self.leave(y))


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return nn.functional.interpolate(x, size=like.shape[2:], mode="nearest")


def train_decoder(
    bits: Tensor,
    images: Tensor,
    *,
    seconds: float,
    epochs: int,
    batch: int = 64,
    seed: int = 0,
    progress: Progress = quiet,
    stage: str = "decoder",
) -> Decoder:
    """Train a decoder on pairs of release and image.

    Args:
        bits: ±1, `[n, k, h_m, w_m]`, of the attacker's own images.
        images: `[n, c, h, w]` in [0, 1].
        seconds: stop after this long: a demo must end.
        epochs: passes at most.
        batch: pairs a step.
        seed: of weights and order.
        progress: told after every step.
        stage: the name it is told.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _, k, height, width = bits.shape
        decoder = Decoder(message_shape=(k, height, width), mean=images.mean(0))
        placed(decoder, bits.device)
        steps = epochs * max(1, len(bits) // batch)
        optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3, weight_decay=1e-3, foreach=True)
        deadline = time.monotonic() + seconds
        decoder.train()
        for step in range(steps):
            index = torch.randint(0, len(bits), (batch,))
            # The rate falls with the larger of the two shares, so that a run cut by time has cooled down too.
            spent = max(step / steps, 1 - (deadline - time.monotonic()) / seconds)
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * max(0.0, 1 - spent)
            drawn = decoder(bits[index])
            target = images[index]
            loss = nn.functional.mse_loss(drawn, target) + 0.2 * nn.functional.l1_loss(drawn, target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if spent >= 1:
                progress(stage, steps, steps)
                break
            progress(stage, step + 1, steps)
    decoder.eval()
    return decoder


@torch.inference_mode()
def reconstruct(decoder: Decoder, bits: Tensor, *, batch: int = 250) -> Tensor:
    """Images `[n, c, h, w]` drawn from ±1 bits `[n, k, h_m, w_m]`."""
    return torch.cat([decoder(part) for part in torch.split(bits, batch)]).clone()
