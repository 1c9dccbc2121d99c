"""Faults of a running model that no trace shows, each laid at the module where it starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from delta.models.obstacle import Obstacle
from delta.models.splitting import close

__all__ = ["bad_outputs", "batch_statistics", "mixed_records"]


@dataclass(frozen=True)
class _Call:
    """One finished call of a module: its name, and copies of the tensors that went in and came out."""

    module: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class _Calls:
    """The calls of a model in the order in which they end, so that inner modules come before outer ones."""

    def __init__(self) -> None:
        self.finished: list[_Call] = []
        self.running: list[tuple[str, tuple[Tensor, ...]]] = []

    @property
    def innermost(self) -> str:
        """The module that was running when the model failed."""
        return self.running[-1][0] if self.running else ""


@contextmanager
def _recording(model: nn.Module) -> Iterator[_Calls]:
    calls = _Calls()

    def before(name: str) -> Any:  # noqa: ANN401
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.running.append((name, _tensors((args, kwargs))))

        return hook

    def after(_: nn.Module, args: tuple[Any, ...], output: object) -> None:
        name, inputs = calls.running.pop()
        calls.finished.append(_Call(name, inputs, _tensors(output)))

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def batch_statistics(model: nn.Module) -> list[Obstacle]:
    """Batch normalisation that would let a record's IR depend on its neighbours."""
    norms = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    training = [name for name, module in norms if module.training]
    found = []
    if training:
        count = f"{len(training)} BatchNorm modules are" if len(training) > 1 else "this BatchNorm module is"
        reason = f"{count} in train mode, where a record's result depends on its batch"
        found.append(
            Obstacle(training[0], reason, "call model.eval(); freeze the backbone before any release")
        )
    for name, module in norms:
        if module.running_mean is None:
            reason = "it keeps no running statistics, so it uses the batch's even in eval mode"
            found.append(Obstacle(name, reason, "set track_running_stats=True, or use GroupNorm"))
    return found


def bad_outputs(model: nn.Module, probe: Tensor) -> tuple[list[Obstacle], bool]:
    """Run a model, which must be in eval mode, and look at what it returns.

    Args:
        model: the model.
        probe: records `[n, channels, height, width]`.

    Returns:
        The obstacles, and whether the model returns logits `[n, classes]` that can be looked at further.
    """
    with _recording(model) as calls:
        try:
            output: object = model(probe)
        except Exception as error:  # a user's forward may fail in any way
            text = next(iter(str(error).strip().splitlines()), "")[:160]
            reason = f"it fails on records {list(probe.shape)} ({type(error).__name__}: {text})"
            return [
                Obstacle(calls.innermost, reason, "give an example of the shape that the model expects")
            ], False
    wrong = _wrong_form(output, len(probe))
    if wrong is not None:
        return [wrong], False
    if not isinstance(output, Tensor) or not output.isfinite().all():
        source = next((c for c in calls.finished if _finite(c.inputs) and not _finite(c.outputs)), None)
        reason = "it turns finite inputs into NaN or infinite values"
        return [
            Obstacle(source.module if source else "", reason, "look for overflow, or a division by 0")
        ], True
    probability = _is_probability(output)
    return ([probability] if probability else []), True


def mixed_records(model: nn.Module, probe: Tensor) -> list[Obstacle]:
    """Randomness in eval mode, and operations that mix the records of a batch.

    Args:
        model: the model, in eval mode.
        probe: at least two records `[n, channels, height, width]` on which the model runs.
    """
    with _recording(model) as first:
        model(probe)
    with _recording(model) as second:
        model(probe)
    source = _first_difference(first.finished, second.finished)
    if source is not None:
        reason = "it gives other results for the same records: it is random, or keeps state, in eval mode"
        mend = "use nn.Dropout instead of a functional dropout, and keep no state between calls"
        return [Obstacle(source, reason, mend)]
    with _recording(model) as alone:
        try:
            model(probe[:1])
        except Exception as error:
            reason = f"it runs on {len(probe)} records but fails on one alone ({type(error).__name__})"
            return [Obstacle(alone.innermost, reason, "write no batch size into the code")]
    own = [_Call(c.module, _head(c.inputs, len(probe)), _head(c.outputs, len(probe))) for c in first.finished]
    source = _first_difference(own, alone.finished)
    if source is None:
        return []
    reason = "it mixes the records of a batch: a record alone gives another result than in a batch"
    mend = "remove what looks across axis 0: batch statistics, sizes written into the code, sums over records"
    return [Obstacle(source, reason, mend)]


def _wrong_form(output: object, n: int) -> Obstacle | None:
    if isinstance(output, Tensor):
        if output.dim() == 2 and len(output) == n and output.is_floating_point():
            return None
        reason = f"it returns {str(output.dtype).removeprefix('torch.')}{list(output.shape)} for {n} records"
        return Obstacle("", f"{reason}, not logits float[{n}, classes]", "flatten to [n, classes] at the end")
    if isinstance(output, Mapping):
        reason = (
            f"it returns a mapping with {', '.join(sorted(map(str, output)))[:80]}, not a tensor of logits"
        )
    elif isinstance(output, (tuple, list)):
        reason = f"it returns a {type(output).__name__} of {len(output)}, not a tensor of logits"
    else:
        reason = f"it returns a {type(output).__name__}, not a tensor of logits"
    return Obstacle("", reason, "wrap it in a module that returns only the logits [n, classes]")


def _is_probability(output: Tensor) -> Obstacle | None:
    """Softmax or log-softmax at the end: fusion adds logits up, and needs them as they are."""
    if output.shape[1] < 2:
        return None
    values = output.double()
    ones = torch.ones(len(values), dtype=torch.float64, device=values.device)
    for name, shares in (("softmax", values), ("log-softmax", values.exp())):
        if bool((shares >= 0).all()) and torch.allclose(shares.sum(1), ones, atol=1e-3):
            return Obstacle("", f"it ends in a {name}, not in logits", f"return what goes into the {name}")
    return None


def _first_difference(ours: list[_Call], theirs: list[_Call]) -> str | None:
    """The first module that got the same and gave something else; none if all agree."""
    if [c.module for c in ours] != [c.module for c in theirs]:
        return ""
    for one, other in zip(ours, theirs, strict=True):
        if _agree(one.inputs, other.inputs) and not _agree(one.outputs, other.outputs):
            return one.module
    return None


def _agree(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    return len(ours) == len(theirs) and all(close(a, b) for a, b in zip(ours, theirs, strict=True))


def _head(tensors: tuple[Tensor, ...], n: int) -> tuple[Tensor, ...]:
    """The first record of every tensor that has n of them along axis 0."""
    return tuple(t[:1] if t.dim() and len(t) == n else t for t in tensors)


def _tensors(tree: object) -> tuple[Tensor, ...]:
    # Copies: a later in-place operation must not change what was seen.
    return tuple(t.detach().clone() for t in tree_leaves(tree) if isinstance(t, Tensor))


def _finite(tensors: tuple[Tensor, ...]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)
