"""Fitting α, on the private side, on records that neither model was trained on."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor, nn

__all__ = ["LEVEL", "LIKELIHOOD_RATIO", "fit_alpha", "mcnemar"]

LIKELIHOOD_RATIO = 3.841
"""95 % point of χ² with one degree of freedom: below it a gain may be chance (Wilks 1938)."""

LEVEL = 0.05
"""Of the test that the fusion gets more records right (McNemar 1947)."""


def fit_alpha(
    z_main: Tensor, z_cloud: Tensor, labels: Tensor, *, alpha_max: float, bound: float, steps: int = 50
) -> float:
    """α of `z_main + α·clip(z_cloud, −B, B)`, in [0, α_max].

    The likelihood of the labels under softmax(a·z_main + b·clip(z_cloud)) is concave in (a, b); α = b/a at
    its maximum, which calibrates z_main by the way. Where the cloud's term does not raise the likelihood by
    more than chance would (likelihood ratio, 5 %), or the fusion does not get more records right than z_main
    alone beyond chance (exact test on the records that only one of them gets right, 5 %), α is 0: the cloud is
    then of no use.

    Args:
        z_main: the main model's logits on held-out records, `[n, classes]`.
        z_cloud: the cloud's, `[n, classes]`.
        labels: `[n]`.
        alpha_max: upper limit, fixed beforehand: the certified margin rests on it.
        bound: B.
        steps: Newton steps at most.
    """
    main = z_main.double()
    cloud = z_cloud.double().clamp(-bound, bound)
    alone, _ = _newton(main[..., None], labels, steps=steps)
    both, weights = _newton(torch.stack([main, cloud], dim=-1), labels, steps=steps)
    a, b = float(weights[0]), float(weights[1])
    if b <= 0 or 2 * (alone - both) <= LIKELIHOOD_RATIO:
        return 0.0
    alpha = alpha_max if a <= 0 else min(b / a, alpha_max)
    right_alone = main.argmax(1) == labels
    right_fused = (main + alpha * cloud).argmax(1) == labels
    gained, lost = int((right_fused & ~right_alone).sum()), int((right_alone & ~right_fused).sum())
    return alpha if mcnemar(gained, lost) <= LEVEL else 0.0


def mcnemar(gained: int, lost: int) -> float:
    """P(at least `gained` of `gained + lost` fair coins fall heads): McNemar's exact test, one-sided."""
    total = gained + lost
    ways = sum(math.comb(total, heads) for heads in range(gained, total + 1))
    return float(Fraction(ways, 2**total))


def _newton(features: Tensor, labels: Tensor, *, steps: int) -> tuple[float, Tensor]:
    """Minimise the summed cross-entropy of `features @ w`, `[n, classes, f]`, over w `[f]`, started at e₁.

    Newton's method with halved steps; a ridge of 1e-6 keeps it finite where classes separate.
    """
    picked = features[torch.arange(len(labels)), labels]  # [n, f]
    size = features.shape[-1]
    ridge = 1e-6 * len(labels)
    weights = torch.zeros(size, dtype=torch.float64)
    weights[0] = 1.0

    def loss(w: Tensor) -> float:
        cross_entropy = nn.functional.cross_entropy(features @ w, labels, reduction="sum")
        return float(cross_entropy + 0.5 * ridge * w.square().sum())

    value = loss(weights)
    for _ in range(steps):
        p = torch.softmax(features @ weights, dim=1)  # [n, classes]
        mean = torch.einsum("nk,nkf->nf", p, features)
        gradient = (mean - picked).sum(0) + ridge * weights
        second = torch.einsum("nk,nkf,nkg->fg", p, features, features) - mean.T @ mean
        step = torch.linalg.solve(second + ridge * torch.eye(size, dtype=torch.float64), gradient)
        scale = 1.0
        while scale > 1e-6 and loss(weights - scale * step) > value:
            scale /= 2
        weights = weights - scale * step
        improved = value - loss(weights)
        value -= improved
        if improved < 1e-10 * max(1.0, abs(value)):
            break
    return value, weights
