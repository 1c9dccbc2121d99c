"""One record through a module under a watcher, such as a counter, without memory or arithmetic where possible."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from delta.errors import ModelError
from delta.models.modes import evaluating

__all__ = ["dry_run"]

W = TypeVar("W", bound=AbstractContextManager[Any])


def dry_run(module: nn.Module, *inputs: Tensor, watch: Callable[[tuple[Tensor, ...]], W]) -> W:
    """Run one record through a module in eval mode inside a watcher; the module is left as it was.

    Meta tensors are tried first. They lack some operations, and a forward may branch on values: then the
    record is run for real, under a fresh watcher.

    Args:
        module: any module.
        inputs: what its forward takes, records along axis 0; one record is run.
        watch: makes a watcher, a context manager, for the tensors that will go in.

    Returns:
        The watcher of the run that succeeded, after it was left.

    Raises:
        ModelError: the module does not run on such inputs.
    """
    records = tuple(x[:1] for x in inputs)
    with evaluating(module):
        try:
            return _run(_on_meta(module), tuple(x.to("meta") for x in records), watch)
        except Exception:
            try:
                return _run(module, records, watch)
            except Exception as error:
                shapes = ", ".join(str(list(x.shape)) for x in records)
                text = next(iter(str(error).strip().splitlines()), "")[:160]
                raise ModelError(
                    f"{type(module).__name__} cannot be counted: it fails on inputs {shapes} "
                    f"({type(error).__name__}: {text}); give records of the shape it expects"
                ) from error


def _on_meta(module: nn.Module) -> Callable[..., object]:
    """The module's forward on meta tensors; its own tensors are left where they are."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    return lambda *inputs: functional_call(module, on_meta, inputs)


def _run(
    run: Callable[..., object], records: tuple[Tensor, ...], watch: Callable[[tuple[Tensor, ...]], W]
) -> W:
    # Fused inference paths, as of `nn.MultiheadAttention`, hide their operations from a watcher.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        watcher = watch(records)
        with warnings.catch_warnings(), watcher:
            warnings.simplefilter("ignore")
            run(*records)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return watcher
