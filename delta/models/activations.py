"""Non-linear work of a network, counted per record: what two-party protocols pay for.

Counted are comparisons, wherever they come from, modules or functions: ReLUs and their kin, and the maxima of
pooling. Any other non-linear operation on values that depend on the record is named with its size, never
dropped.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from delta.models.dry_run import dry_run
from delta.models.linear_ops import BILINEAR, CHOOSING, LINEAR, NORMALISING, SHAPE_ONLY, WEIGHTED

__all__ = ["NonLinearWork", "Unmodelled", "count_nonlinear"]


@dataclass(frozen=True)
class Unmodelled:
    """A non-linear operation that is no comparison: its name, how often it runs, values it yields a record."""

    name: str
    calls: int
    values: int


@dataclass(frozen=True)
class NonLinearWork:
    """Non-linear operations of one record.

    Attributes:
        relus: comparisons of a value with a constant: one each for ReLU, PReLU, leaky ReLU, |x| and a clamp at
            one side; two for a clamp at both sides, such as ReLU6.
        maxima: comparisons of two values: w − 1 for a maximum over w, padding left out.
        layers: calls of operations that hold comparisons.
        steps: comparisons in sequence over all layers: 1 for a layer of ReLUs, ⌈log₂ w⌉ for maxima over w.
        linear_layers: convolutions and matrix products with weights.
        not_modelled: the other non-linear operations, in the order of their first call.
    """

    relus: int
    maxima: int
    layers: int
    steps: int
    linear_layers: int
    not_modelled: tuple[Unmodelled, ...]

    @property
    def comparisons(self) -> int:
        """ReLUs and maxima."""
        return self.relus + self.maxima


def count_nonlinear(module: nn.Module, *inputs: Tensor) -> NonLinearWork:
    """Count the non-linear operations of one record through a module, in eval mode.

    Args:
        module: any module; nothing in it is changed.
        inputs: what its forward takes, records along axis 0; one record is counted.

    Raises:
        ModelError: the module does not run on such inputs.
    """
    watcher = dry_run(module, *inputs, watch=_Watcher)
    return watcher.result()


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the values that depend on the record, by storage, and counts what is done to them."""

    def __init__(self, records: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tainted: dict[int, weakref.ref[Any]] = {}
        self._relus = self._maxima = self._layers = self._steps = self._linear = 0
        self._other: dict[str, tuple[int, int]] = {}
        self._taint(records)

    def result(self) -> NonLinearWork:
        """What was counted."""
        other = tuple(Unmodelled(name, calls, values) for name, (calls, values) in self._other.items())
        return NonLinearWork(self._relus, self._maxima, self._layers, self._steps, self._linear, other)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        named = _by_name(func, args, kwargs or {})
        depends = {name for name, value in named.items() if self._depends(value)}
        # Sizes are read first: an in-place operation may change them.
        source = named.get("self")
        shape = tuple(source.shape) if isinstance(source, Tensor) else ()
        result = func(*args, **(kwargs or {}))
        name = _name_of(func)
        if depends and name not in SHAPE_ONLY:
            self._count(name, named, depends, shape, result)
            self._taint(result)
        return result

    def _count(
        self, name: str, named: dict[str, Any], depends: set[str], shape: tuple[int, ...], result: object
    ) -> None:
        values = _values(result)
        per_value = _relus_a_value(name, named)
        if per_value:
            self._add(relus=per_value * values, steps=1)
        elif name in ("maximum", "minimum", "fmax", "fmin"):
            self._add(maxima=values, steps=1)
        elif name in ("max", "min", "amax", "amin"):
            window = math.prod(shape) // max(values, 1)
            self._add(maxima=(window - 1) * values, steps=_halvings(window))
        elif (windows := _windows(name, named, shape, result)) is not None:
            covered, outputs, widest = windows
            self._add(maxima=covered - outputs, steps=_halvings(widest))
        elif _is_linear(name, named, depends, result):
            self._linear += name in WEIGHTED
        else:
            shown = _shown(name, named)
            calls, before = self._other.get(shown, (0, 0))
            self._other[shown] = (calls + 1, before + values)

    def _add(self, *, relus: int = 0, maxima: int = 0, steps: int) -> None:
        self._relus += relus
        self._maxima += maxima
        if relus or maxima:
            self._layers += 1
            self._steps += steps

    def _depends(self, value: object) -> bool:
        return any(_key(t) in self._tainted for t in tree_leaves(value) if _is_strided(t))

    def _taint(self, value: object) -> None:
        for tensor in tree_leaves(value):
            if _is_strided(tensor):
                storage, key = tensor.untyped_storage(), _key(tensor)
                if key not in self._tainted:
                    self._tainted[key] = weakref.ref(storage, partial(self._freed, key))

    def _freed(self, key: int, _: object) -> None:
        self._tainted.pop(key, None)


def _relus_a_value(name: str, named: Mapping[str, Any]) -> int:
    """Comparisons with a constant that an operation makes for each of its values; 0 for other operations."""
    if name in ("relu", "threshold", "leaky_relu", "rrelu_with_noise", "_prelu_kernel", "prelu", "abs"):
        return 1
    if name in ("clamp_min", "clamp_max"):
        return 1
    if name == "clamp":
        return (named.get("min") is not None) + (named.get("max") is not None)
    return 2 if name in ("hardtanh", "relu6") else 0


def _windows(
    name: str, named: Mapping[str, Any], shape: tuple[int, ...], result: object
) -> tuple[int, int, int] | None:
    """Of a max pooling: values covered by all windows together, windows, values in the widest one."""
    kind, _, dims = name.removesuffix("_with_indices").rpartition("max_pool")
    if kind not in ("", "adaptive_") or dims not in ("1d", "2d", "3d"):
        return None
    count = int(dims[0])
    outputs = _first(result).shape
    axes: list[list[int]] = []
    for axis in range(count):
        size, out = shape[len(shape) - count + axis], outputs[len(outputs) - count + axis]
        if kind == "adaptive_":
            axes.append([-(-(o + 1) * size // out) - o * size // out for o in range(out)])
            continue
        kernel, padding, dilation = (
            _each(named.get(key), axis, default)
            for key, default in (("kernel_size", 1), ("padding", 0), ("dilation", 1))
        )
        stride = _each(named.get("stride") or named.get("kernel_size"), axis, 1)
        reach = [[o * stride - padding + i * dilation for i in range(kernel)] for o in range(out)]
        axes.append([sum(0 <= at < size for at in places) for places in reach])
    maps = math.prod(outputs[: len(outputs) - count])
    covered = maps * math.prod(sum(lengths) for lengths in axes)
    return covered, math.prod(outputs), math.prod(max(lengths) for lengths in axes)


def _is_linear(name: str, named: Mapping[str, Any], depends: set[str], result: object) -> bool:
    """Whether the result is linear in what depends on the record."""
    if name in NORMALISING:
        return not named.get("training", "no_training" not in name and "no_update" not in name)
    if name in BILINEAR:
        return sum(argument in depends for argument in BILINEAR[name]) < 2
    if name in CHOOSING:
        return CHOOSING[name] not in depends and named.get("rounding_mode") is None
    rounds = any(_is_floating(named[key]) for key in depends) and not _is_floating(result)
    return name in LINEAR and not rounds


def _shown(name: str, named: Mapping[str, Any]) -> str:
    """The name that a reader knows an operation by."""
    if name in NORMALISING:
        return "batch_norm on the record's own statistics"
    if name in BILINEAR:
        return f"{name} of two activations"
    if name.startswith("_scaled_dot_product"):
        return "scaled_dot_product_attention"
    if name == "pow":
        return f"pow {named.get('exponent')}" if not isinstance(named.get("exponent"), Tensor) else "pow"
    known = {"_local_scalar_dense": "branch on a value", "_to_copy": "rounding", "_safe_softmax": "softmax"}
    return known.get(name, name.removeprefix("_").removeprefix("native_"))


def _by_name(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    names = [argument.name for argument in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _name_of(func: Any) -> str:  # noqa: ANN401
    name: str = func._schema.name.partition("::")[2]
    return name if name.startswith("__") else name.rstrip("_")


def _values(result: object) -> int:
    tensors = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
    return tensors[0].numel() if tensors else 1


def _first(result: object) -> Tensor:
    first: Tensor = tree_leaves(result)[0]
    return first


def _each(value: Any, axis: int, default: int) -> int:  # noqa: ANN401
    """A pooling's setting along one axis: a list may hold one value for all."""
    if value is None or value == []:
        return default
    if isinstance(value, int):
        return value
    return int(value[axis] if len(value) > 1 else value[0])


def _halvings(window: int) -> int:
    return math.ceil(math.log2(window)) if window > 1 else 0


def _is_floating(value: object) -> bool:
    return any(isinstance(t, Tensor) and t.is_floating_point() for t in tree_leaves(value))


def _is_strided(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
