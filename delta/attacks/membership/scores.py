"""What an attacker can see of a candidate record through a model: loss, confidence, and labels of changed views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delta.attacks.membership.threshold import views_of
from delta.attacks.release_tap import ReleaseTap
from delta.attacks.tap import generator_on
from delta.methods.delta.parts import PrivateParts
from delta.training.fit import Progress, quiet

__all__ = ["Ask", "Signals", "asks_main", "asks_releases", "asks_stored", "logit_confidence", "signals_of"]

Ask = Callable[[Tensor], list[Tensor]]
"""Candidates `[b, …]` → what the models are asked, one input a draw."""

_BATCH = 256


@dataclass(frozen=True)
class Signals:
    """What some models say of candidates, means over the draws.

    Attributes:
        confidence: logit-scaled confidence φ of the candidate's label, `[models, n]` float64.
        loss: cross-entropy, `[models, n]` float64.
        kept: share of draws answered with the label, `[models, views, n]` float64; the first view is the image.
        draws: models' answers behind each figure of a view.
    """

    confidence: Tensor
    loss: Tensor
    kept: Tensor
    draws: int

    def accuracy(self, model: int, chosen: Tensor) -> float:
        """Percent of chosen candidates, `[n]` bool, that a model answers with their label."""
        return 100.0 * float(self.kept[model, 0, chosen].mean())


def logit_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """φ = log p_y − log Σ_{j≠y} p_j, `[n]` float64: of any confidence, without rounding it to 0 or 1.

    Carlini et al. 2022 (arXiv 2112.03570), section V-A; nearly normal over models. Both terms share the softmax's
    denominator, so it is z_y − log Σ_{j≠y} exp z_j.

    Args:
        logits: `[n, classes]`.
        labels: `[n]`.
    """
    z = logits.double()
    own = z.gather(1, labels[:, None])
    others = z.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - torch.logsumexp(others, 1)


def asks_releases(tap: ReleaseTap, *, draws: int, seed: int) -> Ask:
    """Releases that the attacker simulates itself: it knows the backbone, and draws noise of its own.

    Args:
        tap: of the bundle.
        draws: of noise a candidate; one is all there is without noise.
        seed: of the noise.
    """
    generators: dict[torch.device, torch.Generator] = {}

    def ask(x: Tensor) -> list[Tensor]:
        generator = generators.setdefault(x.device, generator_on(x.device, seed))
        messages = tap.messages(x)
        return [tap.draw(messages, looks=1, generator=generator) for _ in range(draws if tap.noisy else 1)]

    return ask


def asks_stored() -> Ask:
    """The stored release itself, `[b, B]` uint8: the attacker is the cloud."""
    return lambda bits: [bits]


def asks_main(parts: PrivateParts) -> Ask:
    """What the main model reads: whoever has the private half of a bundle computes it."""

    @torch.no_grad()
    def ask(x: Tensor) -> list[Tensor]:
        found = parts.to(x.device)
        return [found.decomposer.main_input(found.decomposer(found.backbone(x)))]

    return ask


@torch.no_grad()
def signals_of(
    models: Sequence[nn.Module],
    candidates: Tensor,
    labels: Tensor,
    ask: Ask,
    *,
    reach: int | None = None,
    mirror: bool = False,
    progress: Progress = quiet,
    stage: str = "membership scores",
) -> Signals:
    """Ask every model about every candidate; all get the same questions.

    Args:
        models: in eval mode, on the device of the candidates.
        candidates: preprocessed records `[n, c, h, w]`, or what else `ask` takes.
        labels: `[n]`.
        ask: what the models are asked.
        reach: of the shifts of views, pixels; none for the candidate alone.
        mirror: whether a mirrored candidate is a view.
        progress: told after every batch.
        stage: the name it is told.
    """
    confidence, loss, kept = [], [], []
    draws = 1
    labels = labels.to(candidates.device)
    for start in range(0, len(labels), _BATCH):
        part, y = candidates[start : start + _BATCH], labels[start : start + _BATCH]
        views = [part] if reach is None else views_of(part, reach=reach, mirror=mirror)
        shares = torch.zeros(len(models), len(views), len(y), dtype=torch.float64)
        for place, view in enumerate(views):
            asked = ask(view)
            draws = len(asked)
            for number, model in enumerate(models):
                answers = [model(one).double() for one in asked]
                right = torch.stack([answer.argmax(1) == y for answer in answers])
                shares[number, place] = right.double().mean(0).cpu()
                if place == 0:
                    confidence.append(torch.stack([logit_confidence(z, y) for z in answers]).mean(0).cpu())
                    losses = [nn.functional.cross_entropy(z, y, reduction="none") for z in answers]
                    loss.append(torch.stack(losses).mean(0).cpu())
        kept.append(shares)
        progress(stage, min(start + _BATCH, len(labels)), len(labels))
    return Signals(
        confidence=_by_model(confidence, len(models)),
        loss=_by_model(loss, len(models)),
        kept=torch.cat(kept, dim=2),
        draws=draws,
    )


def _by_model(rows: Sequence[Tensor], models: int) -> Tensor:
    """Rows in the order (batch, model) as `[models, n]`."""
    return torch.stack([torch.cat(list(rows[number::models])) for number in range(models)])
