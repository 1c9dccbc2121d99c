"""Peak memory of live tensors, counted rather than measured: the same on every machine."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_memory", "tensor_bytes"]


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the bytes of all storages that operations have made and that still live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}

    def watch(self, values: object) -> None:
        """Count the storages of the tensors in a tree, each once."""
        for value in tree_leaves(values):
            if not isinstance(value, Tensor) or value.layout is not torch.strided:
                continue
            storage = value.untyped_storage()
            key = storage._cdata
            if key in self._known and self._known[key][0]() is not None:
                continue
            size = storage.nbytes()
            self._known[key] = (weakref.ref(storage, partial(self._freed, key, size)), size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _freed(self, key: int, size: int, _: object) -> None:
        self.now -= size
        self._known.pop(key, None)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = dict(kwargs or {})
        # Weights are seen as arguments: a storage that no operation made is not counted again as a result.
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if _is_strided(t)}
        result = func(*args, **kwargs)
        self.watch(
            [t for t in tree_leaves(result) if _is_strided(t) and t.untyped_storage()._cdata not in given]
        )
        return result


def peak_memory(fn: Callable[..., object], *inputs: Tensor) -> int:
    """The most bytes that tensors held at one time while `fn(*inputs)` ran.

    Counted are the storages of the inputs and of every tensor that an operation makes, each from its making
    until it is freed. Not counted: weights and other tensors that `fn` already holds (see `tensor_bytes`),
    the scratch memory inside a kernel, the allocator's rounding.

    Args:
        fn: what to run; under `torch.no_grad` for inference.
        inputs: its tensors; one record each for a count per record. Meta tensors work where `fn` takes them.

    Returns:
        Bytes.
    """
    live = _LiveBytes()
    live.watch(list(inputs))
    with live:
        fn(*inputs)
    return live.peak


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind some tensors, such as a model's weights."""
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(sizes.values())


def _is_strided(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided
