"""DP-SGD, a step at a time: per-record gradients and clipping by opacus, noise from secret numbers of our own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from delta.errors import ConfigError
from delta.methods.dp_sgd.accounting import needs_opacus
from delta.methods.dp_sgd.buffers import buffers_kept
from delta.methods.dp_sgd.plan import DpSgdPlan
from delta.methods.dp_sgd.randomness import SecretNumbers
from delta.methods.grid_noise import gaussian_on_grid

__all__ = ["DpStepper", "under_opacus"]

_TOGETHER = 64
"""Records whose gradients are held at once; a larger batch goes through in parts."""


class DpStepper:
    """A module under DP-SGD (Abadi et al. 2016, arXiv 1607.00133); between steps it is in eval mode.

    Only parameters change: what a step writes into buffers has no noise, and is taken back however the step ends.

    Args:
        module: whose parameters are trained, on its device.
        plan: noise, clipping and descent.
        numbers: of the noise.
    """

    def __init__(self, module: nn.Module, plan: DpSgdPlan, numbers: SecretNumbers) -> None:
        self._module, self._plan, self._numbers = module, plan, numbers
        self._parameters = list(module.requires_grad_(True).parameters())
        self._sgd = torch.optim.SGD(self._parameters, lr=plan.learning_rate, momentum=plan.momentum)
        self._model, self._clipping = under_opacus(module, self._sgd, plan)
        self._device = self._parameters[0].device

    def step(self, x: Tensor, y: Tensor) -> float:
        """One step on a batch; the sum of its records' losses before it, which is exact and for the owner alone.

        Args:
            x: records `[n, *shape]`; n may be 0, and the step is noise alone then.
            y: labels `[n]`.

        Raises:
            ConfigError: the loss or a gradient is not finite; nothing was updated.
        """
        with torch.inference_mode(False), torch.enable_grad():
            x, y = x.clone(), y.clone()  # a tensor made in inference mode takes no part in a gradient
            self._module.train()
            try:
                parts = zip(torch.split(x, _TOGETHER), torch.split(y, _TOGETHER), strict=True)
                loss = sum(self._accumulate(part, labels) for part, labels in parts if len(part))
                self._check_finite()
            except BaseException:
                self._forget()
                raise
            finally:
                self._module.eval()
            with torch.no_grad():
                self._descend()
            return loss

    def _accumulate(self, x: Tensor, y: Tensor) -> float:
        """Add the clipped gradients of some records to `summed_grad`; returns the sum of their losses."""
        # Buffers go back after each part, too: the next part's gradients must not depend on these records.
        with warnings.catch_warnings(), buffers_kept(self._module):
            # The records need no gradient: the first layer's hook fires on its outputs, which is enough for it.
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            loss = nn.functional.cross_entropy(self._model(x.to(self._device)).float(), y.to(self._device))
            loss.backward()  # type: ignore[no-untyped-call]
        self._clipping.clip_and_accumulate()
        for parameter in self._parameters:
            parameter.grad_sample = None  # type: ignore[attr-defined]
        return float(loss.detach()) * len(x)

    def _check_finite(self) -> None:
        sums = [found for p in self._parameters if (found := p.summed_grad) is not None]  # type: ignore[attr-defined]
        if not all(bool(torch.isfinite(one).all()) for one in sums):
            raise ConfigError("a gradient is not finite; lower the learning rate")

    def _descend(self) -> None:
        sigma = self._plan.noise_multiplier * self._plan.max_grad_norm
        for parameter in self._parameters:
            found = parameter.summed_grad  # type: ignore[attr-defined]
            clipped = torch.zeros_like(parameter) if found is None else found
            flat = clipped.cpu().double().flatten()
            noisy = gaussian_on_grid(flat, sigma=sigma, uniforms=self._numbers.integers(flat.numel()))
            parameter.grad = (noisy / self._plan.batch).view(parameter.shape).to(parameter)
        self._sgd.step()
        self._forget()

    def _forget(self) -> None:
        """No gradient stays, exact or noisy."""
        for parameter in self._parameters:
            parameter.grad_sample = parameter.summed_grad = parameter.grad = None  # type: ignore[attr-defined]


def under_opacus(
    module: nn.Module, sgd: torch.optim.Optimizer, plan: DpSgdPlan
) -> tuple[Callable[..., Tensor], Any]:
    """The module with opacus's hooks, and what clips the gradients that they leave."""
    opacus = needs_opacus()
    part: Any
    for part in module.modules():  # hooks on a module forbid its output to be changed in place
        if getattr(part, "inplace", False) is True:
            part.inplace = False
    model = opacus.GradSampleModule(module, batch_first=True, loss_reduction="mean")
    clipping = opacus.optimizers.DPOptimizer(
        sgd,
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.max_grad_norm,
        expected_batch_size=plan.batch,
    )
    return model, clipping
