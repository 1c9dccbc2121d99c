"""Trained weights on disk, named by everything that determines them, so that a second run need not train."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn

from delta.bundle.store import serialise_weights
from delta.config import canonical_hash
from delta.files import write_whole

__all__ = ["WeightCache"]


class WeightCache:
    """A folder of safetensors files.

    Args:
        folder: made on first use.
        context: plain JSON that determines all weights: data fingerprint, code version, seed.
    """

    def __init__(self, folder: Path, context: Any) -> None:  # noqa: ANN401
        self._folder = folder
        self._context = context

    def restore(self, name: str, settings: Any, module: nn.Module) -> bool:  # noqa: ANN401
        """Load weights into a module; False where there are none, or they are damaged or do not fit."""
        path = self._path(name, settings)
        try:
            data = path.read_bytes()
            if hashlib.sha256(data[:-32]).digest() != data[-32:]:
                return False
            stored = load_tensors(data[:-32])
        except (OSError, SafetensorError):
            return False
        own = module.state_dict()
        if {n: t.shape for n, t in stored.items()} != {n: t.shape for n, t in own.items()}:
            return False  # before a single weight is touched: training then starts from the seeded ones
        module.load_state_dict(stored)
        return True

    def keep(self, name: str, settings: Any, module: nn.Module) -> None:  # noqa: ANN401
        """Store a module's weights, whole or not at all.

        Raises:
            InputError: the folder cannot be written.
        """
        data = serialise_weights(dict(module.state_dict()))
        write_whole(self._path(name, settings), data + hashlib.sha256(data).digest())

    def _path(self, name: str, settings: Any) -> Path:  # noqa: ANN401
        key = canonical_hash({"context": self._context, "name": name, "settings": settings})
        return self._folder / f"{name}-{key[:16]}.weights"
