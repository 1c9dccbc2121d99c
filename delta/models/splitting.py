"""Splitting a user's model into a private backbone and a public body that share its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from delta.bundle.manifest import Architecture
from delta.errors import InputError, ModelError, SplitError
from delta.models.modes import evaluating, record_and_noise
from delta.models.obstacle import Obstacle
from delta.models.targets import OURS, build_target, full_target, infer_target, same_tensors
from delta.models.tracing import Cut, find_cut

if TYPE_CHECKING:
    from delta.models.plan import Plan

__all__ = ["Parts", "SplitPoint", "all_parts", "check_cut", "close", "split", "split_points"]


@dataclass(frozen=True)
class Parts:
    """A model in two parts.

    Attributes:
        model: the whole model.
        backbone: φ, records `[n, channels, height, width]` → IR `[n, c, h, w]`; shares the model's weights.
        body: the rest, IR → logits `[n, classes]`; shares the model's weights.
        at: the first module that runs in the cloud.
        input_shape: of a record, `(channels, height, width)`.
        ir_shape: of φ(x), `(c, h, w)`.
        classes: number of logits.
        architecture: how the cloud can build the model; none if that is not known.
    """

    model: nn.Module
    backbone: nn.Module
    body: nn.Module
    at: str
    input_shape: tuple[int, int, int]
    ir_shape: tuple[int, int, int]
    classes: int
    architecture: Architecture | None

    def to(self, target: torch.device | torch.dtype | str) -> Parts:
        """Move the model and both halves, in place; moving the model alone leaves buffers behind.

        Weights stay shared. A buffer that a traced forward reads by itself, such as a mean to subtract, is
        held by the half as well.
        """
        for module in (self.model, self.backbone, self.body):
            module.to(target)
        return self

    def plan(self, **settings: Any) -> Plan:  # noqa: ANN401
        """What running the model under Delta costs; settings as for `delta.models.plan.plan`."""
        from delta.models.plan import plan  # plan imports Parts

        return plan(self, **settings)


@dataclass(frozen=True)
class SplitPoint:
    """A place where a model can be split.

    Attributes:
        at: the first module that would run in the cloud.
        ir_shape: `(c, h, w)`.
    """

    at: str
    ir_shape: tuple[int, int, int]


def split(
    model: nn.Module | str,
    *,
    at: str,
    example: Tensor,
    target: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Parts:
    """Split a model in front of a module.

    The model is traced with `torch.fx`, but only modules that hold `at` are looked into. Exactly one tensor
    `[n, c, h, w]`, the input of `at`, may cross the cut. The parts are then run against the model, in eval
    mode, on records alone and in batches. The model stays as it was.

    Args:
        model: the model, or a name of ours or an import target that builds it.
        at: name of the first module that runs in the cloud.
        example: records `[n, channels, height, width]`; only their shape, dtype and device matter.
        target: import target `package.module:callable` from which the cloud can build the model; found out
            where possible.
        arguments: keyword arguments of the target, plain JSON.

    Raises:
        InputError: the example is no batch of images.
        ModelError: the target does not build this model.
        SplitError: the model cannot be split there; the message names the module, the reason and the mend.
    """
    value: object = example  # from callers without a type checker it may be anything
    if not isinstance(value, Tensor) or example.dim() != 4 or min(example.shape) < 1:
        got = _kind(value)
        raise InputError(f"example must be a batch of records [n, channels, height, width], got {got}")
    if isinstance(model, str):
        target = full_target(model)
        model = build_target(target, arguments, allowed={target}).to(example.device)
    with evaluating(model):
        cut = find_cut(model, at)
        if isinstance(cut, Obstacle):
            raise SplitError(f"cannot split at {cut}{_suggestion(model, at)}")
        probe = record_and_noise(example)
        checked = check_cut(cut, model, probe)
        if isinstance(checked, Obstacle):
            raise SplitError(f"cannot split at {checked}")
        ir_shape, classes = checked
        architecture = _architecture(model, target, arguments, probe)
    if architecture is not None:
        architecture = architecture.model_copy(update={"split_at": cut.at})
    channels, height, width = example.shape[1:]
    return Parts(
        model, cut.backbone, cut.body, cut.at, (channels, height, width), ir_shape, classes, architecture
    )


def _suggestion(model: nn.Module, at: str) -> str:
    """The innermost module around `at` that can be split at, in words; empty if there is none."""
    outer = at.rpartition(".")[0]
    while outer:
        if isinstance(find_cut(model, outer), Cut):
            return f"; {outer!r} works"
        outer = outer.rpartition(".")[0]
    return ""


def check_cut(cut: Cut, model: nn.Module, probe: Tensor) -> tuple[tuple[int, int, int], int] | Obstacle:
    """Run the two parts of a cut against the model, which must be in eval mode.

    Args:
        cut: what `find_cut` returned for the model.
        model: the whole model.
        probe: at least two records `[n, channels, height, width]`.

    Returns:
        The IR's shape `(c, h, w)` and the number of classes; or what stands in the way.
    """
    n = len(probe)
    try:
        expected = model(probe)
        ir = cut.backbone(probe)
    except Exception as error:  # a user's forward may fail in any way
        text = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
        shape = list(probe.shape)
        return Obstacle(
            "", f"it fails on records {shape} ({text})", "give an example of the shape it expects"
        )
    if not isinstance(ir, Tensor) or ir.dim() != 4 or len(ir) != n or not ir.is_floating_point():
        got = (
            f"{str(ir.dtype).removeprefix('torch.')}{list(ir.shape)}"
            if isinstance(ir, Tensor)
            else type(ir).__name__
        )
        reason = (
            f"its input is no 4-D feature map: {cut.producer} gives {got} where float[{n}, c, h, w] is needed"
        )
        return Obstacle(cut.at, reason, "split at a module that takes feature maps")
    if not isinstance(expected, Tensor) or expected.dim() != 2 or len(expected) != n:
        got = _kind(expected)
        reason = f"it returns {got}, not logits [{n}, classes]"
        return Obstacle("", reason, "wrap it in a module that returns only the logits")
    inner = ir.clone()
    try:
        actual = cut.body(ir)
    except Exception as error:
        text = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
        return Obstacle(cut.at, f"the part behind it fails on its own ({text})", "split at another module")
    if not isinstance(actual, Tensor) or not close(actual, expected):
        reason = (
            "body(backbone(x)) differs from model(x): an in-place operation, state or randomness is at work"
        )
        return Obstacle(cut.at, reason, "write that operation out of place, or split at another module")
    if not close(cut.backbone(probe[:1]), inner[:1]):
        reason = "before it the records of a batch are mixed: a record alone gives another IR than in a batch"
        return Obstacle(
            cut.at, reason, "remove what mixes records (batch statistics, sizes written into the code)"
        )
    if not close(cut.body(inner[:1]), expected[:1]):
        reason = (
            "behind it the records of a batch are mixed: a record alone gets other logits than in a batch"
        )
        return Obstacle(
            cut.at, reason, "remove what mixes records (batch statistics, sizes written into the code)"
        )
    _, c, h, w = inner.shape
    return (c, h, w), expected.shape[1]


def _kind(value: object) -> str:
    """Dtype and shape of a tensor, or the type's name: never a value (I6)."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__


def close(actual: Tensor, expected: Tensor) -> bool:
    """Whether two results agree up to rounding in another order; non-finite values agree with themselves."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    relative = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 3e-2
    finite = expected[expected.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(
        actual, expected, rtol=relative, atol=relative * scale * 0.1 + 1e-12, equal_nan=True
    )


def split_points(model: nn.Module, example: Tensor) -> list[SplitPoint]:
    """All places where a model can be split, in the order in which they are reached.

    Places that cut the same tensor are one; the outermost module names it.

    Args:
        model: the whole model.
        example: records `[n, channels, height, width]`.
    """
    return [SplitPoint(parts.at, parts.ir_shape) for parts in all_parts(model, example)]


def all_parts(model: nn.Module, example: Tensor) -> Iterator[Parts]:
    """Split a model at each of its split points in turn; the parts have no architecture.

    Args:
        model: the whole model.
        example: records `[n, channels, height, width]`.
    """
    probe = record_and_noise(example, records=2)
    channels, height, width = example.shape[1:]
    with evaluating(model):
        names = _candidates(model, probe)
    for at in names:
        with evaluating(model):
            cut = find_cut(model, at)
            checked = cut if isinstance(cut, Obstacle) else check_cut(cut, model, probe)
        if isinstance(cut, Cut) and not isinstance(checked, Obstacle):
            ir_shape, classes = checked
            yield Parts(model, cut.backbone, cut.body, at, (channels, height, width), ir_shape, classes, None)


def _candidates(model: nn.Module, probe: Tensor) -> list[str]:
    """Of the modules that are given one and the same 4-D tensor, the outermost; all that are called once."""
    calls: dict[str, int] = {}
    named: dict[tuple[int, int], str] = {}
    alive = [probe]  # so that no identity is used twice

    def hook_for(name: str) -> Any:  # noqa: ANN401
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            calls[name] = calls.get(name, 0) + 1
            if len(args) == 1 and isinstance(args[0], Tensor) and args[0].dim() == 4:
                alive.append(args[0])
                # In-place operations give the same object other content, and another version.
                key = (id(args[0]), args[0]._version)
                if key not in named or name.count(".") <= named[key].count("."):
                    named[key] = name

        return hook

    handles = [m.register_forward_pre_hook(hook_for(name)) for name, m in model.named_modules() if name]
    try:
        model(probe)
    except Exception as error:
        raise ModelError(f"the model fails on records {list(probe.shape)}: {type(error).__name__}") from error
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in named.values() if calls[name] == 1]


def _architecture(
    model: nn.Module, target: str | None, arguments: Mapping[str, Any] | None, probe: Tensor
) -> Architecture | None:
    if target is None:
        found = infer_target(model)
        return found if found is not None and _builds_same(model, found, probe) else None
    found = Architecture(target=full_target(target), arguments=dict(arguments or {}))
    if not _builds_same(model, found, probe):
        raise ModelError(
            f"target {found.target!r} builds another model than the one given: state names, shapes or "
            "outputs differ; give the arguments with which the model was made"
        )
    return found


def _builds_same(model: nn.Module, architecture: Architecture, probe: Tensor) -> bool:
    """Whether the architecture, given the model's state, computes what the model does."""
    ours = architecture.target in OURS
    # Ours hold no state outside their state dict, so the twin may borrow the model's tensors.
    with torch.random.fork_rng(devices=[]), torch.device("meta" if ours else "cpu"):
        twin = build_target(architecture.target, architecture.arguments, allowed={architecture.target})
    if not same_tensors(model, twin):
        return False
    twin.load_state_dict(model.state_dict(), assign=ours)
    twin.to(probe.device).eval()
    return close(twin(probe), model(probe))
