"""Loading a user's weights: safetensors only, since a pickle can run code (I5)."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from delta.errors import ModelError

__all__ = ["load_weights"]

_CONVERT = (
    "convert it where you trust it: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a model, every name and shape checked.

    Raises:
        ModelError: the file is absent, of another format, or does not fit the model.
    """
    if not path.is_file():
        raise ModelError(f"weights {path} are not there; give a safetensors file")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError):
        raise ModelError(f"weights {path} are not a safetensors file; {_CONVERT}") from None
    expected = model.state_dict()
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    other = [name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape]
    faults = [
        f"{len(names)} {what} (first: {names[0]})"
        for what, names in (
            ("missing", missing),
            ("not in the model", surplus),
            ("of another shape", sorted(other)),
        )
        if names
    ]
    if faults:
        raise ModelError(
            f"weights {path} do not fit the model: {', '.join(faults)}; give those of this very model"
        )
    model.load_state_dict(tensors)
