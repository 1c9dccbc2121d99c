"""The attacker's own classifier: what a reconstruction still shows of class and identity, and a perceptual distance.

No weights are downloaded: it is trained here, on the attacker's own images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delta.attacks.matching import MatchResult, match_scores
from delta.models.resnet import ResNet, resnet_small
from delta.training.config import FitConfig
from delta.training.fit import Progress, augmented, fit, placed, quiet

__all__ = ["Judge", "train_judge"]

_BATCH = 250
_TINY = 1e-10


@dataclass(frozen=True)
class Judge:
    """A classifier whose features tell how alike two images are.

    Attributes:
        model: in eval mode, reads (image − ½)/¼.
    """

    model: ResNet

    @torch.no_grad()
    def classes(self, images: Tensor) -> Tensor:
        """The class that it sees in each image, `[n]`."""
        parts = torch.split(images, _BATCH)
        return torch.cat([self.model(_standard(part)).argmax(1) for part in parts])

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Percent of images whose class it sees."""
        return 100.0 * float((self.classes(images) == labels.to(images.device)).double().mean())

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What it sees, `[n, d]`: half the squared distance of two rows is LPIPS' form of a distance.

        Of each of the stages' outputs the channels are brought to length one at every place; squared differences
        are summed over channels, averaged over places and over stages (Zhang et al. 2018, arXiv 1801.03924, with
        equal weights for all channels and a classifier of our own).
        """
        found = []
        for part in torch.split(images, _BATCH):
            x = self.model.maxpool(self.model.act(self.model.bn1(self.model.conv1(_standard(part)))))
            rows = []
            for name in self.model.stages:
                x = self.model.get_submodule(name)(x)
                unit = x / (x.square().sum(1, keepdim=True).sqrt() + _TINY)
                places = unit.shape[2] * unit.shape[3]
                rows.append(unit.flatten(1) * (2 / (places * len(self.model.stages))) ** 0.5)
            found.append(torch.cat(rows, dim=1))
        return torch.cat(found)

    def distance(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """The perceptual distance of each pair, `[n]`; 0 for equal images."""
        pairs = zip(torch.split(images, _BATCH), torch.split(reconstructions, _BATCH), strict=True)
        return torch.cat([(self.features(a) - self.features(b)).square().sum(1) / 2 for a, b in pairs])

    def reidentified(self, reconstructions: Tensor, candidates: Tensor, truth: Tensor) -> MatchResult:
        """Which candidate image each reconstruction is nearest to.

        Args:
            reconstructions: `[n, c, h, w]`.
            candidates: `[m, c, h, w]`.
            truth: index of each one's own image among them, `[n]`.
        """

        def scores(drawn: Tensor, images: Tensor) -> Tensor:
            near = self.features(images)
            found: Tensor = (self.features(drawn) @ near.T - near.square().sum(1) / 2).double()
            return found

        return match_scores(reconstructions, candidates, truth, scores, candidates=1000)


def train_judge(
    images: Tensor,
    labels: Tensor,
    *,
    classes: int,
    epochs: int = 10,
    seed: int = 0,
    progress: Progress = quiet,
) -> Judge:
    """Train the classifier on the attacker's own images.

    Args:
        images: `[n, c, h, w]` in [0, 1], on the device where it shall run.
        labels: `[n]`.
        classes: how many there are.
        epochs: passes.
        seed: of weights, order and augmentation.
        progress: told after every step.
    """
    channels, device = images.shape[1], images.device
    generator = torch.Generator().manual_seed(seed)
    labels = labels.to(device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = resnet_small(classes=classes, in_channels=channels, width=32 if channels > 1 else 16)
    model = placed(model, device)
    how = "shift+flip" if channels > 1 else "shift"

    def forward(net: nn.Module, index: Tensor) -> Tensor:
        view = augmented(images[index.to(device)], how, generator=generator, shift=2)
        logits: Tensor = net(_standard(view))
        return logits

    fit(
        model,
        forward,
        lambda logits, index: nn.functional.cross_entropy(logits, labels[index.to(device)]),
        records=len(images),
        config=FitConfig(epochs=epochs, batch=128),
        generator=generator,
        progress=progress,
        stage="the attacker's classifier",
        precision="bfloat16" if device.type == "cuda" else "float32",
    )
    return Judge(model.requires_grad_(False))


def _standard(images: Tensor) -> Tensor:
    return (images - 0.5) / 0.25
