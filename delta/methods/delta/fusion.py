"""How the private side combines its own logits with the cloud's, and what a hostile cloud could change."""

from __future__ import annotations

import torch
from torch import Tensor

from delta.errors import CloudAnswerError

__all__ = ["certified_fraction", "check_answer", "fuse"]


def check_answer(logits: Tensor | None, *, records: int, classes: int) -> Tensor:
    """The cloud's logits `[records, classes]` as float32, or an error: an answer is untrusted input (I4).

    No gradient comes with them (I3): a cloud half of this process might hold its graph.

    Raises:
        CloudAnswerError: absent, of another shape or type, or not finite.
    """
    if logits is None:
        raise CloudAnswerError("the cloud's answer holds no logits")
    if logits.shape != (records, classes) or logits.dtype != torch.float32:
        raise CloudAnswerError(
            f"the cloud's answer is {logits.dtype}{list(logits.shape)}, "
            f"expected float32[{records}, {classes}]"
        )
    if not bool(torch.isfinite(logits).all()):
        raise CloudAnswerError("the cloud's answer is not finite")
    return logits.detach()


def fuse(z_main: Tensor, z_cloud: Tensor, *, alpha: float, bound: float) -> Tensor:
    """z_main + α · clip(z_cloud, −B, B), all `[n, classes]`; `sum` fusion is α = 1."""
    return z_main + alpha * z_cloud.clamp(-bound, bound)


def certified_fraction(z_main: Tensor, *, alpha: float, bound: float) -> float:
    """Fraction of records whose answer no cloud can flip at inference: top-1 margin of z_main > 2αB."""
    top = z_main.topk(2, dim=1).values  # [n, 2]
    return float(((top[:, 0] - top[:, 1]) > 2 * alpha * bound).double().mean())
