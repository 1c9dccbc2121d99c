"""The private side's small model M_main, in the authors' layout and in a lighter family with a MAC budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn

from delta.errors import ModelError
from delta.models.resnet import BasicBlock, initialise, shortcut

__all__ = ["LIGHT_FAMILY", "Layout", "MainModel", "build_main", "light_budget", "light_macs"]

Layout = Literal["authors", "light"]

LIGHT_FAMILY: tuple[tuple[int, int], ...] = tuple(
    (width, blocks)
    for blocks in (1, 2)
    for width in (2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128)
)
"""(width, blocks a stage) of every light model: three stages of `width`, 2·`width` and 4·`width` channels.

At 8 channels of 16×16 they range from 0.08 M MACs (2 × 1) to 422 M (128 × 2).
"""


class MainModel(nn.Module):
    """M_main: stages of blocks, average pooling and a linear classifier.

    Shapes: `[n, in_channels, h', w'] → [n, classes]`, the input being p or U·p.

    Attributes:
        settings: plain JSON; `build_main(**settings)` builds the same model.
    """

    def __init__(
        self, stages: Sequence[nn.Module], *, features: int, classes: int, settings: dict[str, Any]
    ) -> None:
        super().__init__()
        self.settings = settings
        self.stages = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(features, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Principal part `[n, in_channels, h', w']` → logits `[n, classes]`."""
        logits: Tensor = self.fc(self.avgpool(self.stages(x)).flatten(1))
        return logits


class LowRankBlock(nn.Module):
    """The authors' block: 3×3 to p channels, 3×3 to 2p with the stride, 1×1 to 4p, and a shortcut.

    Shapes: `[n, in_channels, h, w] → [n, 4·planes, ⌈h/stride⌉, ⌈w/stride⌉]`.
    """

    def __init__(self, in_channels: int, planes: int, *, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, planes, 3, padding=1, bias=False),
            nn.BatchNorm2d(planes),
            nn.ReLU(),
            nn.Conv2d(planes, 2 * planes, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(2 * planes),
            nn.ReLU(),
            nn.Conv2d(2 * planes, 4 * planes, 1, bias=False),
            nn.BatchNorm2d(4 * planes),
        )
        self.downsample = shortcut(in_channels, 4 * planes, stride=stride)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """`[n, in_channels, h, w]` → `[n, 4·planes, h', w']`."""
        out: Tensor = self.act(self.body(x) + self.downsample(x))
        return out


def build_main(
    *,
    layout: Layout,
    in_channels: int,
    size: Sequence[int],
    classes: int,
    max_macs: int | None = None,
    rank: int | None = None,
    cropped: bool = True,
    width: int | None = None,
    blocks: int | None = None,
) -> MainModel:
    """Build M_main.

    Args:
        layout: `authors`: three stages of two blocks, planes 2r, 8r, 16r, strides 1, 2, 2 (without the crop a
            stage of 4r planes comes second); `light`: the largest of `LIGHT_FAMILY` within `max_macs`.
        in_channels: r if the model reads p, c if it reads U·p.
        size: (h', w'), the size of p.
        classes: number of logits.
        max_macs: of `light`: the budget, MACs per record.
        rank: of `authors`: r.
        cropped: of `authors`: whether the input was cropped by the block DCT.
        width: of `light`, instead of a budget: channels of the first stage.
        blocks: of `light`, with `width`: blocks a stage.

    Raises:
        ModelError: an argument is missing or wrong, or no light model fits the budget.
    """
    if layout not in get_args(Layout):
        raise ModelError(f"main layout must be 'authors' or 'light', got {layout!r}")
    if len(size) != 2 or min(*size, in_channels, classes) < 1:
        raise ModelError(
            f"a main model needs two sizes, channels and classes of at least 1, got size {tuple(size)}, "
            f"{in_channels} channels, {classes} classes"
        )
    common: dict[str, Any] = {
        "layout": layout,
        "in_channels": in_channels,
        "size": [int(side) for side in size],
        "classes": classes,
    }
    if layout == "authors":
        if rank is None or rank < 1:
            raise ModelError(f"the authors' main layout needs the rank r of at least 1, got {rank!r}")
        return _authors(common, rank=rank, cropped=cropped)
    if width is None or blocks is None:
        width, blocks = _largest_within(max_macs, in_channels=in_channels, size=size, classes=classes)
    if min(width, blocks) < 1:
        raise ModelError(f"a light main model needs width and blocks of at least 1, got {width} and {blocks}")
    return _light(common, width=width, blocks=blocks)


def light_macs(*, in_channels: int, size: Sequence[int], classes: int, width: int, blocks: int) -> int:
    """MACs per record of a light model: its convolutions and its classifier."""
    h, w = size
    total, channels = 9 * in_channels * width * h * w, width
    for stage in range(3):
        out = width << stage
        if stage:
            h, w = -(-h // 2), -(-w // 2)
        total += h * w * (9 * channels * out + (2 * blocks - 1) * 9 * out * out)
        total += h * w * channels * out if stage else 0
        channels = out
    return total + channels * classes


def light_budget(whole_macs: int, *, in_channels: int, size: Sequence[int], classes: int) -> int:
    """The budget where none is given: a hundredth of the whole model, or the smallest light model above it."""
    width, blocks = LIGHT_FAMILY[0]
    smallest = light_macs(in_channels=in_channels, size=size, classes=classes, width=width, blocks=blocks)
    return max(whole_macs // 100, smallest)


def _largest_within(
    max_macs: int | None, *, in_channels: int, size: Sequence[int], classes: int
) -> tuple[int, int]:
    if max_macs is None:
        raise ModelError("a light main model needs its budget: give max_macs, such as 2_500_000")
    costs = {
        (width, blocks): light_macs(
            in_channels=in_channels, size=size, classes=classes, width=width, blocks=blocks
        )
        for width, blocks in LIGHT_FAMILY
    }
    fitting = [member for member, macs in costs.items() if macs <= max_macs]
    if not fitting:
        raise ModelError(
            f"no light main model fits {max_macs:,} MACs: the smallest takes {min(costs.values()):,} for "
            f"{in_channels}x{size[0]}x{size[1]}; raise max_macs, or crop more"
        )
    return max(fitting, key=lambda member: costs[member])


def _light(common: dict[str, Any], *, width: int, blocks: int) -> MainModel:
    stages: list[nn.Module] = [
        nn.Sequential(
            nn.Conv2d(common["in_channels"], width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
    ]
    channels = width
    for stage in range(3):
        out = width << stage
        first = BasicBlock(channels, out, stride=2 if stage else 1)
        stages.append(nn.Sequential(first, *(BasicBlock(out, out) for _ in range(blocks - 1))))
        channels = out
    settings = {**common, "width": width, "blocks": blocks}
    return MainModel(stages, features=channels, classes=common["classes"], settings=settings)


def _authors(common: dict[str, Any], *, rank: int, cropped: bool) -> MainModel:
    plan = ((2, 1), (8, 2), (16, 2)) if cropped else ((2, 1), (4, 2), (8, 2), (16, 2))
    stages, channels = [], common["in_channels"]
    for factor, stride in plan:
        planes = factor * rank
        first = LowRankBlock(channels, planes, stride=stride)
        stages.append(nn.Sequential(first, LowRankBlock(4 * planes, planes, stride=1)))
        channels = 4 * planes
    settings = {**common, "rank": rank, "cropped": cropped}
    return MainModel(stages, features=channels, classes=common["classes"], settings=settings)
