"""Delta: split private inference between a private client and an untrusted cloud.

Source: Niu, Ali, Prakash, Avestimehr, "All Rivers Run to the Sea: Private Learning with Asymmetric
Flows", CVPR 2024 (arXiv 2312.05264).

    parts = delta.split(model, at="layer1", example=x)
    parts.plan()
    bundle = delta.train(parts, data, noise="none")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from delta.bundle.store import Bundle, load_bundle, save_bundle
    from delta.data.load import load_dataset
    from delta.models.splitting import split
    from delta.training.api import train

__version__ = "0.1.0"
__all__ = ["Bundle", "__version__", "load_bundle", "load_dataset", "save_bundle", "split", "train"]

_HOMES = {
    "Bundle": "delta.bundle.store",
    "load_bundle": "delta.bundle.store",
    "load_dataset": "delta.data.load",
    "save_bundle": "delta.bundle.store",
    "split": "delta.models.splitting",
    "train": "delta.training.api",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import the public names on first use: `import delta.errors` should not load PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'delta' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
