"""What running a model under Delta costs, counted before anything is trained or sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from delta.decomposition import Decomposer
from delta.errors import ConfigError, ModelError
from delta.models.bag_model import bag_of_patches
from delta.models.cloud_model import CloudModel
from delta.models.crop import crop_for
from delta.models.macs import count_macs, count_params, dct_macs, decomposition_macs, svd_macs
from delta.models.main_model import Layout, build_main, light_budget
from delta.models.memory import tensor_bytes
from delta.models.modes import blank_record
from delta.models.plan_notes import notes_on
from delta.models.plan_table import render_plan
from delta.models.private_path import private_peak
from delta.models.splitting import Parts, split
from delta.models.targets import OURS, build_target, full_target
from delta.privacy.ceiling import ceiling_bits
from delta.privacy.gaussian import mu_of
from delta.release.config import LayoutConfig
from delta.release.message import MessageKind, MessageMap

__all__ = ["Plan", "PlanSettings", "plan"]

MIB = 1 << 20
_LARGE_INPUT = 128


@dataclass(frozen=True)
class PlanSettings:
    """What a plan was made for: the names of the release configuration and of `build_main`."""

    rank: int
    block: int
    keep: int
    basis: Literal["svd", "pca"]
    offload: Literal["residual", "principal"]
    message: MessageKind
    k: int
    message_stride: int
    main_layout: Layout
    main_max_macs: int | None
    main: dict[str, Any]
    layout: str = "kept"


@dataclass(frozen=True)
class Plan:
    """The cost of one record.

    Attributes:
        model: target, split point, shapes and classes.
        settings: what the plan was made for.
        shapes: of a record's principal part, main model's input and message.
        macs: integers; `svd` and `dct` in the slides' convention, `decomposition` what our code executes,
            `cloud` adapter and body, `whole` the unsplit model.
        params: by part; `cloud` is `adapter` and `body`.
        bytes_per_record: `up` the packed bits, `down` the logits in float32; neither holds framing.
        peak_private_mib: peak of the private side's live tensors, its weights not counted, MiB.
        private_weights_mib: backbone and main model, MiB.
        privacy: μ, ε, δ, ceiling in bits, of one release; none without an ε.
        notes: where figures differ from others and why, made from the figures themselves.
    """

    model: dict[str, Any]
    settings: PlanSettings
    shapes: dict[str, tuple[int, ...]]
    macs: dict[str, int]
    params: dict[str, int]
    bytes_per_record: dict[str, int]
    peak_private_mib: float
    private_weights_mib: float
    privacy: dict[str, float] | None
    notes: tuple[str, ...]

    @property
    def private_macs(self) -> int:
        """Backbone, decomposition and main model."""
        return self.macs["backbone"] + self.macs["decomposition"] + self.macs["main"]

    def __str__(self) -> str:
        return render_plan(self)

    def to_json(self) -> dict[str, Any]:
        """The fields by name, plain JSON."""
        value = asdict(self)
        value["shapes"] = {name: list(shape) for name, shape in self.shapes.items()}
        value["notes"] = list(self.notes)
        return value


def plan(
    parts_or_model: Parts | nn.Module | str,
    *,
    at: str = "layer1",
    classes: int | None = None,
    input: Sequence[int] | None = None,
    arguments: Mapping[str, Any] | None = None,
    rank: int | None = None,
    block: int | None = None,
    keep: int | None = None,
    basis: Literal["svd", "pca"] = "pca",
    offload: Literal["residual", "principal"] = "residual",
    message: MessageKind | None = None,
    k: int | None = None,
    message_stride: int = 1,
    layout_patch: int | None = None,
    main_layout: Layout = "light",
    main_max_macs: int | None = None,
    epsilon: float | None = None,
    delta: float = 1e-5,
) -> Plan:
    """Count what one record costs on either side. Nothing is trained, and no weights are needed.

    The defaults are those of `delta.train`; the paper's are `basis="svd"` and `main_layout="authors"`.

    Args:
        parts_or_model: a split model, a model, or a name (`resnet18`, `package.module:callable`).
        at: split point, of an unsplit model.
        classes: number of classes, of one of our models given by name.
        input: (channels, height, width) of a record, of an unsplit model.
        arguments: further arguments of a model given by name. Ours get the ImageNet stem from 128 pixels on.
        rank: r of the channel basis; none for 8, or all channels of a narrower IR.
        block: M; none for the largest that fits (see `crop_for`).
        keep: m; none for half of M.
        basis: `svd` or `pca`.
        offload: the stream that the message is made from.
        message: its map; none for the channel mean of the residual, or all of the principal channels.
        k: channels of a `projection` or of a `learned` map.
        message_stride: of a `learned` map.
        layout_patch: side of the patches of a shuffled layout, which our bag of patches reads in the cloud; none
            keeps the layout.
        main_layout: `authors` or `light`.
        main_max_macs: budget of a `light` main model; none takes a hundredth of the whole, or the smallest.
        epsilon: ε of one release, for the privacy ceiling; none leaves it out.
        delta: δ of one release.

    Raises:
        ModelError: the model cannot be built, split or counted.
        ConfigError: rank, crop, message or privacy parameters do not fit.
    """
    parts = _parts_of(parts_or_model, at=at, classes=classes, input_shape=input, arguments=arguments)
    c, h, w = parts.ir_shape
    rank = min(8, c) if rank is None else rank
    block, keep = crop_for(parts.ir_shape, block=block, keep=keep)
    decomposer = Decomposer(
        channels=c,
        height=h,
        width=w,
        rank=rank,
        block=block,
        keep=keep,
        kind=basis,
        basis=_frame(basis, c, rank),
    )
    residual = offload == "residual"
    kind: MessageKind = message or ("channel-mean" if residual else "all-channels")
    message_map = MessageMap(kind, channels=c if residual else rank, k=k, stride=message_stride)
    message_shape = message_map.shape_of(parts.ir_shape if residual else decomposer.principal_shape)

    record = blank_record(parts.model, parts.input_shape)
    whole = count_macs(parts.model, record)
    if main_layout == "light" and main_max_macs is None:
        main_max_macs = light_budget(
            whole, in_channels=decomposer.main_channels, size=decomposer.spatial.kept, classes=parts.classes
        )
    main = build_main(
        layout=main_layout,
        in_channels=decomposer.main_channels,
        size=decomposer.spatial.kept,
        classes=parts.classes,
        max_macs=main_max_macs,
        rank=rank if main_layout == "authors" else None,
        cropped=keep < block,
    )
    layout = LayoutConfig.parse({"patch": layout_patch}, what="layout")
    try:
        layout.check(message_shape[1:])
    except ValueError as error:
        raise ConfigError(str(error)) from None
    body = parts.body
    if layout_patch is not None:
        body = bag_of_patches(classes=parts.classes, channels=message_map.k, patch=layout_patch)
    cloud = CloudModel(body, message_shape=message_shape, ir_shape=parts.ir_shape, patch=layout_patch)
    macs = {
        "backbone": count_macs(parts.backbone, record),
        "svd": svd_macs(ir_shape=parts.ir_shape, rank=rank),
        "dct": dct_macs(ir_shape=parts.ir_shape, rank=rank, block=block),
        "decomposition": decomposition_macs(
            ir_shape=parts.ir_shape,
            rank=rank,
            block=block,
            keep=keep,
            basis=basis,
            k=message_map.k,
            offload=offload,
            stride=message_stride if kind == "learned" else None,
        ),
        "main": count_macs(main, torch.zeros(1, *decomposer.main_shape)),
        "cloud": count_macs(cloud, torch.zeros(1, _payload(message_shape), dtype=torch.uint8)),
        "whole": whole,
    }
    params = {
        "backbone": count_params(parts.backbone),
        "main": count_params(main),
        "adapter": count_params(cloud.adapter),
        "body": count_params(body),
        "cloud": count_params(cloud),
        "whole": count_params(parts.model),
    }
    for module in (decomposer, message_map, main):
        module.to(record.device)
    peak = private_peak(
        record,
        backbone=parts.backbone,
        decomposer=decomposer,
        message=message_map,
        main=main,
        offload=offload,
    )
    result = Plan(
        model={
            "target": parts.architecture.target if parts.architecture else "",
            "arguments": parts.architecture.arguments if parts.architecture else {},
            "at": parts.at,
            "input_shape": list(parts.input_shape),
            "ir_shape": list(parts.ir_shape),
            "classes": parts.classes,
        },
        settings=PlanSettings(
            rank,
            block,
            keep,
            basis,
            offload,
            kind,
            message_map.k,
            message_stride,
            main_layout,
            main_max_macs,
            main.settings,
            layout.text,
        ),
        shapes={
            "principal": decomposer.principal_shape,
            "main_input": decomposer.main_shape,
            "message": message_shape,
        },
        macs=macs,
        params=params,
        bytes_per_record={"up": _payload(message_shape), "down": 4 * parts.classes},
        peak_private_mib=peak / MIB,
        private_weights_mib=tensor_bytes([*_state(parts.backbone), *_state(main)]) / MIB,
        privacy=None,
        notes=(),
    )
    if epsilon is not None:
        mu = mu_of(epsilon=epsilon, delta=delta)
        privacy = {"mu": mu, "epsilon": epsilon, "delta": delta, "ceiling_bits": ceiling_bits(mu=mu)}
        result = replace(result, privacy=privacy)
    return replace(result, notes=tuple(notes_on(result, parts, cloud.adapter)))


def _parts_of(
    source: Parts | nn.Module | str,
    *,
    at: str,
    classes: int | None,
    input_shape: Sequence[int] | None,
    arguments: Mapping[str, Any] | None,
) -> Parts:
    if isinstance(source, Parts):
        return source
    if input_shape is None or len(input_shape) != 3 or min(input_shape) < 1:
        got = tuple(input_shape) if input_shape is not None else "none"
        raise ConfigError(
            f"a plan needs the input's (channels, height, width), got {got}; give --input 3x32x32"
        )
    model, target = source, None
    if isinstance(model, str):
        target = full_target(model)
        arguments = dict(arguments or {})
        if target in OURS:
            if classes is None and "classes" not in arguments:
                raise ConfigError(f"model {source!r} needs the number of classes; give --classes 100")
            large = min(input_shape[1:]) >= _LARGE_INPUT
            defaults = {
                "classes": classes,
                "in_channels": input_shape[0],
                "stem": "imagenet" if large else "cifar",
            }
            arguments = {**defaults, **arguments}
        model = build_target(target, arguments, allowed={target})
    example = blank_record(model, input_shape)
    parts = split(model, at=at, example=example, target=target, arguments=arguments if target else None)
    if classes is not None and classes != parts.classes:
        raise ModelError(
            f"the model has {parts.classes} classes, not {classes}; leave --classes out or correct it"
        )
    return parts


def _payload(message_shape: tuple[int, ...]) -> int:
    """Bytes of a record's packed bits: ⌈k·h_m·w_m/8⌉."""
    bits = 1
    for size in message_shape:
        bits *= size
    return -(-bits // 8)


def _frame(basis: Literal["svd", "pca"], channels: int, rank: int) -> Tensor | None:
    """Any orthonormal frame will do to count a pca decomposition."""
    return torch.eye(channels)[:, :rank] if basis == "pca" else None


def _state(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
