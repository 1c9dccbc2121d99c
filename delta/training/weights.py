"""Weights from a cloud, held against those of the model that they are for: an answer is untrusted (I4)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from delta.errors import CloudAnswerError

__all__ = ["check_weights"]


def check_weights(weights: Mapping[str, Tensor], *, like: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not of these names, shapes and types.

    Args:
        weights: by name, as they came; whether they are finite is not looked at.
        like: weights of the model that they are for.

    Raises:
        CloudAnswerError: a name, a shape or a type differs.
    """
    if {n: (t.shape, t.dtype) for n, t in weights.items()} != {
        n: (t.shape, t.dtype) for n, t in like.items()
    }:
        raise CloudAnswerError(
            "the cloud's weights are not those of the declared model: names, shapes or types differ"
        )
