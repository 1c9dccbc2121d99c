"""What the private side's own computing takes for one record: backbone, decomposition, message, main model."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from delta.decomposition.decomposer import Decomposer
from delta.models.memory import peak_memory
from delta.models.modes import evaluating
from delta.release.message import MessageMap, message_of

__all__ = ["private_peak"]


def private_peak(
    record: Tensor,
    *,
    backbone: nn.Module,
    decomposer: Decomposer,
    message: MessageMap,
    main: nn.Module,
    offload: Literal["residual", "principal"],
) -> int:
    """Bytes of live tensors at the worst moment of the private side's path, its weights not counted.

    Args:
        record: `[1, channels, height, width]`, on the device of all modules.
        backbone: φ.
        decomposer: of φ's output.
        message: map of the offloaded stream.
        main: M_main.
        offload: the stream that feeds the release.
    """

    def path(x: Tensor) -> Tensor:
        phi = backbone(x)
        decomposition, released = message_of(phi, decomposer=decomposer, message=message, offload=offload)
        del phi
        main(decomposer.main_input(decomposition))
        return released

    with evaluating(backbone), evaluating(main):
        return peak_memory(path, record)
