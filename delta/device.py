"""A device by name, checked before anything is loaded onto it."""

from __future__ import annotations

import os

import torch

from delta.errors import ConfigError

__all__ = ["device_of"]


def device_of(name: str) -> torch.device:
    """`cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: another name, or a device that is not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} is none; use 'cpu', 'cuda' or 'cuda:N'") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported; use 'cpu', 'cuda' or 'cuda:N'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r} is not there ({torch.cuda.device_count()} CUDA devices); use 'cpu'"
        )
    if device.type == "cuda":
        # Before the first product: what makes cuBLAS repeat itself (a resumed fit must).
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return device
