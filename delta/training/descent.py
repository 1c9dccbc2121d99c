"""How every model of ours descends: AdamW on a one-cycle schedule, clipped; one step at a time, resumable."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from delta.errors import CheckpointError, ConfigError
from delta.training.config import FitConfig, Precision

__all__ = ["Descent"]

_MAX_NORM = 5.0  # of all gradients together
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_SCHEDULE = ("last_epoch", "_step_count", "_last_lr")


class Descent:
    """The optimiser of one model.

    Args:
        model: whose parameters are trained.
        config: learning rate and weight decay.
        steps: in all, for the schedule.
        precision: of forward and loss.
        device: where the model is.
    """

    def __init__(
        self,
        model: nn.Module,
        config: FitConfig,
        *,
        steps: int,
        precision: Precision = "float32",
        device: torch.device = torch.device("cpu"),
    ) -> None:
        self._parameters = list(model.parameters())
        self._precision, self._device = precision, device
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=config.learning_rate, weight_decay=config.weight_decay, foreach=True
        )
        # From 5 steps on: of 4 the warm-up would end at step 0, and the schedule divide by it.
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, max_lr=config.learning_rate, total_steps=max(steps, 5), pct_start=0.25
        )

    def precision(self) -> AbstractContextManager[Any]:
        """The arithmetic in which to call the model: autocast for bfloat16; weights stay in float32."""
        if self._precision == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)

    def step(self, loss: Tensor, *, finite: bool = False) -> Tensor:
        """One step down a loss's gradient; returns the gradient's norm before it was clipped, a scalar.

        Args:
            loss: a scalar.
            finite: refuse a gradient that is not, before anything moves.

        Raises:
            ConfigError: it was refused.
        """
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._parameters, _MAX_NORM)
        if finite and not bool(torch.isfinite(norm)):
            self._optimizer.zero_grad(set_to_none=True)
            raise ConfigError("the gradient is not finite; lower the learning rate, or look at the records")
        self._optimizer.step()
        self._schedule.step()
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """The moments of each parameter that has been trained, by its position."""
        return {
            f"{position}.{name}": self._optimizer.state[parameter][name]
            for position, parameter in enumerate(self._parameters)
            if parameter in self._optimizer.state
            for name in _MOMENTS
        }

    def state(self) -> dict[str, Any]:
        """The schedule's position, and the rates in force, as plain JSON."""
        group, schedule = self._optimizer.param_groups[0], self._schedule.state_dict()
        return {
            "lr": group["lr"],
            "betas": list(group["betas"]),
            "schedule": {name: schedule[name] for name in _SCHEDULE},
        }

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go on where `tensors()` and `state()` were taken.

        Raises:
            CheckpointError: they are another model's; nothing is changed then.
        """
        moments: dict[Tensor, dict[str, Tensor]] = {}
        try:
            for key, tensor in tensors.items():
                position, _, name = key.partition(".")
                parameter = self._parameters[int(position)]
                scalar = name == "step"
                if name not in _MOMENTS or tensor.shape != (() if scalar else parameter.shape):
                    raise ValueError
                # In the parameter's own layout: another one would round another way.
                own = tensor.clone() if scalar else torch.empty_like(parameter).copy_(tensor)
                moments.setdefault(parameter, {})[name] = own.detach()
            if any(len(found) != len(_MOMENTS) for found in moments.values()):
                raise ValueError
            lr, betas = float(state["lr"]), tuple(float(beta) for beta in state["betas"])
            schedule = {name: state["schedule"][name] for name in _SCHEDULE}
        except (KeyError, IndexError, TypeError, ValueError):
            raise CheckpointError(
                "the checkpoint's optimiser is not this model's; choose another folder, or delete it"
            ) from None
        self._optimizer.state.clear()
        self._optimizer.state.update(moments)
        self._optimizer.param_groups[0].update(lr=lr, betas=betas)
        self._schedule.load_state_dict(schedule)
