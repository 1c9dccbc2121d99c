"""`check_model`: every obstacle between a model and Delta, each with its mend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from delta.errors import ConfigError
from delta.models.crop import BLOCKS, crop_for
from delta.models.faults import bad_outputs, batch_statistics, mixed_records
from delta.models.modes import evaluating, record_and_noise
from delta.models.obstacle import Obstacle
from delta.models.splitting import all_parts, check_cut
from delta.models.targets import build_target, full_target
from delta.models.tracing import Cut, find_cut, trace_around

__all__ = ["check_model"]


def check_model(
    model: nn.Module | str,
    example: Tensor,
    at: str | None = None,
    *,
    arguments: Mapping[str, Any] | None = None,
    block: int | None = None,
    keep: int | None = None,
) -> list[Obstacle]:
    """Name what stands in the way of running a model under Delta.

    The model is run in eval mode on a few records, and stays as it was.

    Args:
        model: the model, or a name of ours or an import target that builds it; a model built here is put in
            eval mode first.
        example: records `[n, channels, height, width]`.
        at: the split point in mind; none to ask whether there is any.
        arguments: of a model given by name.
        block: M of the block DCT in mind; none for the largest usual one.
        keep: m of the block DCT in mind.

    Returns:
        The obstacles; empty if there is none.
    """
    if isinstance(model, str):
        target = full_target(model)
        model = build_target(target, arguments, allowed={target}).eval()
    if example.dim() != 4 or min(example.shape) < 1:
        reason = f"the example has shape {list(example.shape)}, not [n, channels, height, width]"
        return [Obstacle("", reason, "give a batch of images")]
    found = batch_statistics(model)
    with evaluating(model):
        probe = record_and_noise(example)
        faults, runs = bad_outputs(model, probe)
        if runs:
            faults += mixed_records(model, probe)
        found += faults
        if at is None:
            found += _anywhere(model, probe, sound=runs and not faults, block=block, keep=keep)
        else:
            found += _there(model, probe, at, sound=runs and not faults, block=block, keep=keep)
    return list(dict.fromkeys(found))


def _there(
    model: nn.Module, probe: Tensor, at: str, *, sound: bool, block: int | None, keep: int | None
) -> list[Obstacle]:
    cut = find_cut(model, at)
    if isinstance(cut, Obstacle):
        return [cut]
    found = _mode_dependence(model, at)
    if not sound:  # the parts would only show the same faults again
        return found
    checked = check_cut(cut, model, probe)
    if isinstance(checked, Obstacle):
        return [*found, checked]
    return [*found, *_crop(at, checked[0], block=block, keep=keep)]


def _anywhere(
    model: nn.Module, probe: Tensor, *, sound: bool, block: int | None, keep: int | None
) -> list[Obstacle]:
    if sound:
        misfits: list[Obstacle] = []
        for parts in all_parts(model, probe):
            misfits = _crop(parts.at, parts.ir_shape, block=block, keep=keep)
            if not misfits:  # one split point that the block fits is enough
                return _mode_dependence(model, parts.at)
        if misfits:
            return misfits
    cuts = [(name, find_cut(model, name)) for name, _ in model.named_children()]
    if not cuts:
        return [Obstacle("", "it has no submodules", "put its layers into modules: at names one of them")]
    reasons = []
    for _, cut in cuts:
        if isinstance(cut, Cut):
            if not sound:
                return []
            checked = check_cut(cut, model, probe)
            reasons += [checked] if isinstance(checked, Obstacle) else []
        else:
            reasons.append(cut)
    return reasons


def _crop(at: str, ir_shape: tuple[int, int, int], *, block: int | None, keep: int | None) -> list[Obstacle]:
    c, h, w = ir_shape
    try:
        fitted, _ = crop_for(ir_shape, block=block, keep=keep)
    except ConfigError as error:
        return [Obstacle(at, f"its IR {c}x{h}x{w} does not fit the block DCT", str(error))]
    if block is None and fitted == 1:
        usual = ", ".join(map(str, BLOCKS))
        reason = f"its IR {c}x{h}x{w} cannot be cropped: none of the blocks {usual} divides {h} and {w}"
        return [Obstacle(at, reason, "give a block that divides both, or another input size")]
    return []


def _mode_dependence(model: nn.Module, at: str) -> list[Obstacle]:
    """Code around the split point that asks `self.training`: a trace keeps one answer for good."""
    quiet = trace_around(model, at)
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    loud = trace_around(model, at)
    for module, training in modes:
        module.training = training
    if isinstance(quiet, Obstacle) or isinstance(loud, Obstacle):
        return []
    ours, theirs = list(quiet[0].nodes), list(loud[0].nodes)
    pairs = zip(ours, theirs, strict=False)
    node = next((a for a, b in pairs if _spelling(a) != _spelling(b)), None)
    if node is None:
        return [] if len(ours) == len(theirs) else [_asks_mode("")]
    stack = list(node.meta.get("nn_module_stack", {}).values())
    where = str(stack[-1][0]) if stack else ""
    return [_asks_mode(where.removeprefix("model").removeprefix("."))]


def _asks_mode(module: str) -> Obstacle:
    reason = "its forward asks self.training, and the split keeps the answer of eval mode, in training too"
    return Obstacle(module, reason, "use a module that knows its mode, such as nn.Dropout for F.dropout")


def _spelling(node: fx.Node) -> tuple[str, str, str, str]:
    return node.op, str(node.target), str(node.args), str(node.kwargs)
