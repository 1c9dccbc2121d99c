"""Watching a fit's loss: its running mean for whoever listens, and an end to a fit that diverges."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from delta.errors import ConfigError

__all__ = ["LossWatch", "Report"]

Report = Callable[[int, int, float], None]
"""Called as `(steps done, steps in all, running mean of the loss)`."""

_REPORT_S = 0.5
_CHECK_STEPS = 50  # each check waits for the device
_WEIGHT = 0.02  # of the newest loss: the mean is of about the last 50


class LossWatch:
    """The running mean of a loss, kept on its device so that no step waits for it.

    Args:
        stage: named when the loss is not finite.
        steps: in all.
        device: of the loss.
        report: told the running mean.
    """

    def __init__(self, stage: str, steps: int, *, device: torch.device, report: Report | None) -> None:
        self._stage, self._steps, self._report = stage, steps, report
        self._every = 1 if device.type == "cpu" else _CHECK_STEPS
        self._mean, self._seen = torch.zeros((), device=device), 0
        self._reported_at = time.monotonic()

    def add(self, step: int, loss: Tensor, norm: Tensor, *, check: bool = False) -> None:
        """Take in one step.

        Args:
            step: which.
            loss: its loss, a scalar.
            norm: of its gradient; one that is not finite has spoilt the weights, whatever the loss.
            check: whether to look at once whether all losses were finite.

        Raises:
            ConfigError: one was not.
        """
        self._seen += 1
        value = loss.detach().float() + 0.0 * norm.detach()
        # A loss that is not finite makes the mean so, for good.
        self._mean.lerp_(value, max(_WEIGHT, 1.0 / self._seen))
        last = step == self._steps
        if check or last or step % self._every == 0:
            self._finite(step)
        if self._report is not None and (last or time.monotonic() - self._reported_at >= _REPORT_S):
            self._report(step, self._steps, self._finite(step))
            self._reported_at = time.monotonic()

    def _finite(self, step: int) -> float:
        mean = float(self._mean)
        if not math.isfinite(mean):
            raise ConfigError(f"{self._stage}: the loss is not finite at step {step}; lower learning_rate")
        return mean
