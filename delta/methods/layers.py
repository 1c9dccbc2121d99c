"""The linear layers of a model, one by one: what the methods that work layer by layer replace."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from delta.errors import ModelError
from delta.models.modes import evaluating

__all__ = ["LinearLayer", "linear_layers", "with_layers"]


@dataclass(frozen=True)
class LinearLayer:
    """One convolution or linear layer of a model.

    Attributes:
        name: of the module in the model.
        module: the layer itself.
        input_shape: of one record, without the records' axis.
        output_shape: of one record.
        macs: a record.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    @property
    def macs(self) -> int:
        """A record: the layer's weights an output position."""
        fan_in = self.module.weight[0].numel()
        return math.prod(self.output_shape) * fan_in


def linear_layers(model: nn.Module, record: Tensor) -> tuple[LinearLayer, ...]:
    """The `nn.Conv2d` and `nn.Linear` layers that a record passes, in the order in which it does.

    Args:
        model: any model; it is run once, in eval mode, and not changed.
        record: `[1, …]`.

    Raises:
        ModelError: a layer runs more than once a record, pads with other values than zeros, or does not keep
            the records along axis 0; or the model has none.
    """
    found: dict[str, LinearLayer] = {}

    def note(name: str, module: nn.Conv2d | nn.Linear, inputs: tuple[Any, ...], output: Tensor) -> None:
        x = inputs[0]
        if name in found:
            raise ModelError(f"layer {name!r} runs more than once a record; give each run a layer of its own")
        if x.shape[0] != 1 or output.shape[0] != 1:
            raise ModelError(f"layer {name!r} does not have the records along its first axis")
        found[name] = LinearLayer(name, module, tuple(x.shape[1:]), tuple(output.shape[1:]))

    handles = []
    try:
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
                    raise ModelError(
                        f"layer {name!r} pads with {module.padding_mode!r}; only zeros are supported"
                    )
                handles.append(module.register_forward_hook(partial(_hook, note, name)))
        with evaluating(model), torch.no_grad():
            model(record[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ModelError("the model has no nn.Conv2d or nn.Linear layer that a cloud could run")
    return tuple(found.values())


def with_layers(model: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of a model in which other modules stand for some of its layers; nothing of those is copied.

    Args:
        model: left as it is.
        replacements: by the name of the layer; "" for the model itself.
    """
    if "" in replacements:
        return replacements[""]
    memo: dict[int, Any] = {id(model.get_submodule(name)): new for name, new in replacements.items()}
    return copy.deepcopy(model, memo)


def _hook(note: Any, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
    note(name, module, inputs, output)
