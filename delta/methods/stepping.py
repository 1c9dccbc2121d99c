"""Training a module one step at a time, wherever it lives."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from delta.config import Strict
from delta.errors import ConfigError
from delta.training.config import FitConfig, Precision
from delta.training.descent import Descent

__all__ = ["StepPlan", "Stepper"]


class StepPlan(Strict):
    """How `train_step` descends: AdamW on a one-cycle schedule.

    Attributes:
        steps: in all; the schedule ends there.
        learning_rate: the highest.
        weight_decay: of AdamW.
        precision: of forward and loss.
    """

    steps: int = Field(default=10_000, ge=1)
    learning_rate: float = Field(default=4e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    precision: Precision = "float32"


class Stepper:
    """A module under training; between steps it is in eval mode.

    Args:
        module: whose parameters are trained, on its device.
        plan: how.
    """

    def __init__(self, module: nn.Module, plan: StepPlan) -> None:
        self.module = module
        self._left = plan.steps
        self._steps = plan.steps
        device = next(module.parameters()).device
        rates = FitConfig(epochs=1, learning_rate=plan.learning_rate, weight_decay=plan.weight_decay)
        self._descent = Descent(module, rates, steps=plan.steps, precision=plan.precision, device=device)

    def step(self, x: Tensor, y: Tensor) -> float:
        """One step down the cross-entropy of records `[n, …]` and labels `[n]`; the loss before it.

        A step that fails, for whatever reason, leaves the module as it was, batch statistics among it.

        Raises:
            ConfigError: the plan has no further step; or the loss, the gradient or a statistic is not finite.
        """
        if self._left == 0:
            raise ConfigError(f"the plan's {self._steps} steps are done; plan more of them")
        # A server runs operations in inference mode, whose tensors no gradient may pass.
        with torch.inference_mode(False), torch.enable_grad():
            x, y = x.clone(), y.clone()
            before = _Buffers(self.module)
            self.module.train()
            try:
                with self._descent.precision():
                    logits = self.module(x)
                loss = nn.functional.cross_entropy(logits.float(), y)
                if not bool(torch.isfinite(loss)):
                    raise ConfigError("the loss is not finite; lower the learning rate")
                if before.spoilt():
                    raise ConfigError("a batch statistic is not finite; look at the records for outliers")
                self._descent.step(loss, finite=True)
            except BaseException:
                before.restore()
                raise
            finally:
                self.module.eval()
            self._left -= 1
            return float(loss.detach())


class _Buffers:
    """The buffers of a module as they are now: a forward pass in training mode changes them."""

    def __init__(self, module: nn.Module) -> None:
        self._kept = [
            (owner, name, buffer, buffer.detach().clone())
            for owner in module.modules()
            for name, buffer in owner.named_buffers(recurse=False)
        ]

    def spoilt(self) -> bool:
        """Whether one is no longer finite that was."""
        return any(
            not bool(getattr(owner, name).isfinite().all()) and bool(copy.isfinite().all())
            for owner, name, _, copy in self._kept
        )

    @torch.no_grad()
    def restore(self) -> None:
        """Back to what they were, in the same tensors."""
        for owner, name, buffer, copy in self._kept:
            buffer.copy_(copy)
            setattr(owner, name, buffer)
