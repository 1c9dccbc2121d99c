"""A training's whole state between two steps, as a checkpoint and back."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from delta.errors import CheckpointError
from delta.training.checkpoint import Checkpoint
from delta.training.descent import Descent

__all__ = ["FitState", "load_weights"]

_OWN = 0x64656C7461  # so that dropout does not draw the numbers that shuffle the records


class FitState:
    """What the rest of a training depends on; the same for a fit and for either side of an interactive one.

    Args:
        model: in training.
        descent: its optimiser.
        generator: order of the records, and augmentation; dropout and its like draw from numbers of their own,
            which its seed determines.
        steps: in all.
        plan: what else is fixed beforehand, as numbers by name; a checkpoint of another plan is refused.

    Attributes:
        step: steps done.
        order: of the records in this epoch, where there is one, `[records]`.
        notes: plain JSON that is stored and restored, too.
    """

    def __init__(
        self,
        model: nn.Module,
        descent: Descent,
        generator: torch.Generator,
        *,
        steps: int,
        plan: Mapping[str, int] | None = None,
    ) -> None:
        self._model, self._descent, self._generator = model, descent, generator
        self._steps, self._plan = steps, {**(plan or {}), "steps": steps}
        self._device = next(model.parameters()).device
        seed = generator.initial_seed() ^ _OWN
        self._random = {"random.cpu": torch.Generator().manual_seed(seed).get_state()}
        if self._device.type == "cuda":
            self._random["random.cuda"] = torch.Generator(self._device).manual_seed(seed).get_state()
        self._seconds, self._since = 0.0, time.monotonic()
        self.step = 0
        self.order = torch.empty(0, dtype=torch.int64)
        self.notes: dict[str, Any] = {}

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self._steps

    @property
    def seconds(self) -> float:
        """How long the training has taken, over all of its parts."""
        return self._seconds + time.monotonic() - self._since

    @contextmanager
    def random(self) -> Iterator[None]:
        """Torch's global random numbers are this training's own here, and the caller's again afterwards."""
        cuda = self._device if self._device.type == "cuda" else None
        # In the type's words integers, but devices do as well.
        devices: list[Any] = [] if cuda is None else [cuda]
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self._random["random.cpu"])
            if cuda is not None:
                torch.cuda.set_rng_state(self._random["random.cuda"], cuda)
            yield
            self._random["random.cpu"] = torch.get_rng_state()
            if cuda is not None:
                self._random["random.cuda"] = torch.cuda.get_rng_state(cuda)

    def checkpoint(self) -> Checkpoint:
        """The state; of a finished training the model's alone, with the notes."""
        weights = self._model.state_dict()
        state = {**self._plan, "notes": self.notes, "seconds": self.seconds}
        if self.finished:
            return Checkpoint(self.step, True, weights, state)
        tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
        tensors |= {f"descent.{name}": tensor for name, tensor in self._descent.tensors().items()}
        tensors |= self._random
        tensors |= {"order": self.order, "random.generator": self._generator.get_state()}
        return Checkpoint(self.step, False, tensors, {**state, "descent": self._descent.state()})

    def restore(self, stored: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it is of another model, of another plan or of another kind of device.
        """
        plan = {name: stored.state.get(name) for name in self._plan}
        if plan != self._plan or (stored.step >= self._steps) != stored.finished:
            raise CheckpointError(
                f"the checkpoint is of {_told(plan)}, expected {_told(self._plan)}; choose another folder, or "
                "delete it"
            )
        notes, seconds = stored.state.get("notes", {}), float(stored.state.get("seconds", 0.0))
        if stored.finished:
            load_weights(self._model, stored.tensors)
        else:
            self._go_on(stored)
        self.step = stored.step
        self.notes.update(notes)
        self._seconds, self._since = seconds, time.monotonic()

    def _go_on(self, stored: Checkpoint) -> None:
        own = {**self._random, "random.generator": self._generator.get_state()}
        drawn = {name: stored.tensors.get(name) for name in own}
        if "order" not in stored.tensors or any(
            (found := drawn[name]) is None or found.shape != tensor.shape or found.dtype != tensor.dtype
            for name, tensor in own.items()
        ):
            raise CheckpointError(
                "the checkpoint is not of a training on this kind of device; choose another folder, or delete it"
            )
        load_weights(self._model, _under("model.", stored.tensors))
        self._descent.load(_under("descent.", stored.tensors), stored.state.get("descent", {}))
        self.order = stored.tensors["order"]
        self._generator.set_state(stored.tensors["random.generator"])
        self._random = {name: stored.tensors[name] for name in self._random}


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


def _told(plan: Mapping[str, int | None]) -> str:
    return ", ".join(f"{number} {name}" for name, number in plan.items())


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
