"""The likelihood ratio that two observations show one and the same message, against two unrelated ones.

Neither message is known: observations are taken as jointly Gaussian, and the message is integrated out (the
two-covariance model of Ioffe 2006, ECCV; Prince & Elder 2007, ICCV). In coordinates in which the pairs' canonical
correlations are ρ_i, the two are standard normal with correlation ρ_i if they belong together, and 0 if not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from delta.errors import InputError

__all__ = ["Link", "fit_link"]

_MOST = 256
_HIGHEST = 0.999
"""Of a correlation: noiseless observations of one record would give an infinite ratio."""
_RIDGE = 1e-4
_EXACT = 2048
"""Dimensions up to which the whole covariance is taken apart."""


@dataclass(frozen=True)
class Link:
    """A fitted ratio.

    Attributes:
        mean: of observations, `[d]`.
        weights: observations to coordinates, `[d, q]`.
        correlations: ρ of each coordinate, `[q]` in [0, 1).
    """

    mean: Tensor
    weights: Tensor
    correlations: Tensor

    def ratio(self, first: Tensor, second: Tensor) -> Tensor:
        """Log-likelihood ratio of each pair `[n, …]`: `[n]` float64, positive speaks for one record."""
        u, v = ((seen.flatten(1).double() - self.mean) @ self.weights for seen in (first, second))
        rho = self.correlations
        rest = 1 - rho.square()
        terms = (2 * rho * u * v - rho.square() * (u.square() + v.square())) / (2 * rest)
        found: Tensor = terms.sum(1) - rest.log().sum() / 2
        return found


def fit_link(first: Tensor, second: Tensor, *, seed: int = 0) -> Link:
    """Fit the ratio to pairs that belong together.

    Half of the pairs choose the coordinates, the other half say how strongly each one correlates, so that what
    is found by chance does not count.

    Args:
        first: `[n, d]`.
        second: of the same records, `[n, d]`.
        seed: of the choice of the halves.

    Raises:
        InputError: fewer than 16 pairs, or shapes differ.
    """
    if first.shape != second.shape or first.dim() != 2 or len(first) < 16:
        raise InputError(
            f"a likelihood ratio is fitted to 16 pairs or more of equal shape [n, d], got {list(first.shape)} and "
            f"{list(second.shape)}"
        )
    a, b = first.double(), second.double()
    mean = torch.cat([a, b]).mean(0)
    a, b = a - mean, b - mean
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed)).to(a.device)
    half, rest = order[: len(order) // 2], order[len(order) // 2 :]
    # The mean of a pair holds what the two share, and half of the rest's variance.
    size = max(1, min(_MOST, len(half) // 4, a.shape[1]))
    basis = _strongest((a[half] + b[half]) / 2, size, seed=seed)
    u, v = a[half] @ basis, b[half] @ basis
    total = (u.T @ u + v.T @ v) / (2 * len(half))
    total += (
        _RIDGE * total.diagonal().mean().clamp_min(1e-12) * torch.eye(size, dtype=a.dtype, device=a.device)
    )
    shared = (u.T @ v + v.T @ u) / (2 * len(half))
    values, vectors = torch.linalg.eigh(total)
    white = vectors * values.clamp_min(1e-12).rsqrt()
    _, turn = torch.linalg.eigh(white.T @ shared @ white)
    weights = basis @ white @ turn
    u, v = a[rest] @ weights, b[rest] @ weights
    # Scale and correlation from the other half: the first has fitted itself.
    power = ((u.square() + v.square()).mean(0) / 2).clamp_min(1e-12)
    rho = ((u * v).mean(0) / power).clamp(0, _HIGHEST)
    # A correlation within two of its own standard errors of zero is none.
    rho = torch.where(rho > 2 / len(rest) ** 0.5, rho, torch.zeros_like(rho))
    return Link(mean, weights / power.sqrt(), rho)


def _strongest(values: Tensor, size: int, *, seed: int) -> Tensor:
    """The directions in which rows `[n, d]` vary most, `[d, size]`; of many dimensions by a randomised search."""
    if values.shape[1] <= _EXACT:
        vectors: Tensor = torch.linalg.eigh(values.T @ values)[1]
        return vectors[:, -size:]
    with torch.random.fork_rng(devices=[values.device] if values.is_cuda else []):
        torch.manual_seed(seed)
        _, _, found = torch.svd_lowrank(values, q=size, niter=4)
    strongest: Tensor = found
    return strongest
