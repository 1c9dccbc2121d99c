"""Running a model for a look at it, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["blank_record", "evaluating", "record_and_noise"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards every module is back in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def blank_record(model: nn.Module, shape: Sequence[int]) -> Tensor:
    """One record of zeros `[1, …]` of the dtype and on the device of a model's first floating tensor."""
    state = [*model.parameters(), *model.buffers()]
    like = next((tensor for tensor in state if tensor.is_floating_point()), torch.zeros(()))
    return torch.zeros(1, *shape, dtype=like.dtype, device=like.device)


def record_and_noise(example: Tensor, *, records: int = 3) -> Tensor:
    """A probe batch `[records, …]`: the example's first record, then seeded noise of its dtype and device.

    An example of zeros alone would let a wrong split pass unseen.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(records - 1, *example.shape[1:], generator=generator)
    return torch.cat([example[:1].detach(), noise.to(device=example.device, dtype=example.dtype)])
