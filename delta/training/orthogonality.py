"""Soft orthogonality of convolutions (Bansal et al. 2018, arXiv 1810.09102, equation 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["soft_orthogonality", "trainable_convolutions"]


def trainable_convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """The 2-d convolutions of a model whose weights are trained."""
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.requires_grad]


def soft_orthogonality(convolutions: Sequence[nn.Conv2d]) -> Tensor:
    """Σ ‖WWᵀ − I‖²_F, a scalar; W `[out, in·kh·kw]` are a convolution's filters.

    WᵀW stands in where there are more filters than values in one: they cannot all be orthogonal then.
    """
    terms = []
    for convolution in convolutions:
        W = convolution.weight.flatten(1).float()
        gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
        terms.append((gram - torch.eye(len(gram), device=W.device)).square().sum())
    return torch.stack(terms).sum()
