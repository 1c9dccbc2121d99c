"""A fit's whole state between two steps, as a checkpoint and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from delta.errors import CheckpointError
from delta.training.checkpoint import Checkpoint
from delta.training.descent import Descent

__all__ = ["FitState", "load_weights"]


class FitState:
    """What the rest of a fit depends on.

    Args:
        model: in training.
        descent: its optimiser.
        generator: order of the records, and augmentation.
        records: how many there are.
        steps: in all.
    """

    def __init__(
        self, model: nn.Module, descent: Descent, generator: torch.Generator, *, records: int, steps: int
    ) -> None:
        self._model, self._descent, self._generator = model, descent, generator
        self._plan = {"records": records, "steps": steps}
        self._steps = steps
        self._device = next(model.parameters()).device
        self.step = 0  # done
        self.order = torch.empty(0, dtype=torch.int64)  # of the records in this epoch

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self._steps

    def checkpoint(self) -> Checkpoint:
        """The state; of a finished fit the model's alone."""
        weights = self._model.state_dict()
        if self.finished:
            return Checkpoint(self.step, True, weights, self._plan)
        tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
        tensors |= {f"descent.{name}": tensor for name, tensor in self._descent.tensors().items()}
        tensors |= {
            "order": self.order,
            "random.generator": self._generator.get_state(),
            "random.cpu": torch.get_rng_state(),
        }
        if self._device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self._device)
        return Checkpoint(self.step, False, tensors, {**self._plan, "descent": self._descent.state()})

    def restore(self, stored: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it is of another model, of other records or of another number of steps.
        """
        plan = {name: stored.state.get(name) for name in self._plan}
        if plan != self._plan or (stored.step >= self._steps) != stored.finished:
            raise CheckpointError(
                f"the checkpoint is of {plan['records']} records in {plan['steps']} steps, expected "
                f"{self._plan['records']} in {self._steps}; choose another folder, or delete it"
            )
        if stored.finished:
            load_weights(self._model, stored.tensors)
            self.step = stored.step
            return
        own = {"order", "random.generator", "random.cpu"} | (
            {"random.cuda"} if self._device.type == "cuda" else set()
        )
        if not own <= stored.tensors.keys():
            raise CheckpointError(
                "the checkpoint is not of a fit on this kind of device; choose another folder, or delete it"
            )
        load_weights(self._model, _under("model.", stored.tensors))
        self._descent.load(_under("descent.", stored.tensors), stored.state.get("descent", {}))
        self.order = stored.tensors["order"]
        self._generator.set_state(stored.tensors["random.generator"])
        torch.set_rng_state(stored.tensors["random.cpu"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(stored.tensors["random.cuda"], self._device)
        self.step = stored.step


def load_weights(model: nn.Module, stored: dict[str, Tensor]) -> None:
    """Copy weights and buffers into a model's own, which keep their layout and device.

    Raises:
        CheckpointError: names, shapes or types differ; nothing is changed then.
    """
    own = model.state_dict()
    if {n: (t.shape, t.dtype) for n, t in stored.items()} != {n: (t.shape, t.dtype) for n, t in own.items()}:
        raise CheckpointError(
            "the checkpoint's weights are not this model's; choose another folder, or delete it"
        )
    for name, tensor in own.items():  # detached, in the model's own memory
        tensor.copy_(stored[name])


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
