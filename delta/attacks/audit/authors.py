"""The published code's mechanism, from its description: what its nominal ε is worth.

As described, nothing is clipped; the noise's scale is p times the batch's mean norm over ε, p being called a
sampling ratio and set to 0.001; then the values are quantised to one bit. The scale depends on private data
and on a record's neighbours in the batch, and p divides the noise although the cloud can tell which record
sent what. Written from that description; no line of that code is in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from delta.attacks.audit.audit import Mechanism
from delta.attacks.audit.faults import Fault
from delta.privacy.accountant import label_mu
from delta.privacy.gaussian import mu_of
from delta.release.ids import ReleaseIdentity
from delta.release.releaser import Releaser

__all__ = ["MECHANISM", "SAMPLING_RATIO", "nominal_mu", "paper_code"]

MECHANISM = "the published code's mechanism, from its description"
SAMPLING_RATIO = 0.001
"""p of the description."""

Noise = Literal["laplace", "gaussian"]


def nominal_mu(*, epsilon: float, delta: float, noise: Noise) -> float:
    """The μ that a nominal ε stands for.

    Laplace noise claims (ε, 0): such a mechanism is μ-GDP with μ = 2Φ⁻¹(e^ε/(1 + e^ε)), the more generous
    reading. Gaussian noise claims (ε, δ), as ours does.
    """
    return label_mu(epsilon=epsilon) if noise == "laplace" else mu_of(epsilon=epsilon, delta=delta)


def paper_code(*, epsilon: float, delta: float, noise: Noise, seed: int) -> Mechanism:
    """The mechanism in the place of our releaser's.

    Args:
        epsilon: nominal.
        delta: nominal, of `gaussian`.
        noise: its law; the scale is the batch's mean L1 norm (`laplace`) or L2 norm (`gaussian`) times p/ε.
        seed: of the noise.
    """
    return Mechanism(
        name=f"{MECHANISM} ({noise})",
        epsilon=epsilon,
        mu=nominal_mu(epsilon=epsilon, delta=delta, noise=noise),
        releaser=Fault(
            f"paper-code-{noise}",
            MECHANISM,
            lambda: _releaser(epsilon, noise=noise, seed=seed),
            memo=False,
            fresh=True,
        ),
    )


def _releaser(epsilon: float, *, noise: Noise, seed: int) -> type[Releaser]:
    generator = np.random.default_rng(seed)  # of one audit: it draws anew at every ask, and stores nothing
    draw = generator.laplace if noise == "laplace" else generator.normal

    class PaperCode(Releaser):
        def _bits(self, message: Tensor, identities: Sequence[ReleaseIdentity]) -> Tensor:
            values = message.flatten(1).to(torch.float64).numpy()
            norms = np.linalg.norm(values, ord=1 if noise == "laplace" else 2, axis=1)
            scale = SAMPLING_RATIO * float(norms.mean()) / epsilon
            noisy = torch.from_numpy(values + draw(0.0, scale, size=values.shape))
            return (noisy >= 0).view(message.shape)

    return PaperCode
