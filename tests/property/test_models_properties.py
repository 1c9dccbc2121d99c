from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from delta.models.crop import crop_for, nearest_crop
from delta.models.macs import count_macs, dct_macs, svd_macs
from delta.models.main_model import LIGHT_FAMILY, build_main, light_macs
from delta.models.splitting import split, split_points

QUICK = settings(max_examples=25, deadline=None)
SIDES = st.integers(1, 20)


class Chain(nn.Module):
    """Random stages, each with or without a shortcut around it."""

    def __init__(self, widths: list[int], skips: list[bool]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in zip([2, *widths], widths, strict=False)
        )
        self.skips = skips
        self.fc = nn.Linear(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        for stage, skip in zip(self.stages, self.skips, strict=True):
            y = stage(x)
            x = y + x.mean(1, keepdim=True) if skip else y
        return self.fc(x.mean((2, 3)))


@QUICK
@given(st.data())
def test_splits_of_random_chains_compute_the_model(data) -> None:
    n = data.draw(st.integers(2, 4))
    widths = data.draw(st.lists(st.integers(1, 5), min_size=n, max_size=n))
    skips = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    model = Chain(widths, skips).eval()
    x = torch.randn(3, 2, 5, 5)
    cut = data.draw(st.integers(1, n - 1))
    parts = split(model, at=f"stages.{cut}", example=x)
    assert parts.ir_shape == (widths[cut - 1], 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(parts.body(parts.backbone(x)), model(x))
    names = {p.at for p in split_points(model, x)}
    assert {f"stages.{i}" for i in range(1, n)} <= names
    # Inside a stage the shortcut around it crosses the cut, and only then.
    for i, skip in enumerate(skips):
        assert (f"stages.{i}.1" in names) != skip


@QUICK
@given(
    a=st.integers(1, 6), b=st.integers(1, 6), k=st.integers(1, 3), stride=st.integers(1, 2), h=SIDES, w=SIDES
)
def test_convolutions_by_hand(a: int, b: int, k: int, stride: int, h: int, w: int) -> None:
    layer = nn.Conv2d(a, b, k, stride=stride, padding=k // 2)
    x = torch.zeros(2, a, h, w)
    out = layer(x)
    assert count_macs(layer, x) == out[0].numel() * a * k * k


@QUICK
@given(
    member=st.sampled_from([m for m in LIGHT_FAMILY if m[0] <= 16]),
    c=st.integers(1, 9),
    h=SIDES,
    w=SIDES,
    classes=st.integers(1, 9),
)
def test_light_models_cost_what_the_formula_says(member, c: int, h: int, w: int, classes: int) -> None:
    width, blocks = member
    main = build_main(layout="light", in_channels=c, size=(h, w), classes=classes, width=width, blocks=blocks)
    formula = light_macs(in_channels=c, size=(h, w), classes=classes, width=width, blocks=blocks)
    assert count_macs(main, torch.zeros(1, c, h, w)) == formula


@QUICK
@given(
    c=st.integers(1, 16),
    side=st.sampled_from([4, 7, 8, 14, 16]),
    low=st.integers(0, 10**7),
    more=st.integers(1, 10**7),
)
def test_a_larger_budget_never_gives_a_smaller_model(c: int, side: int, low: int, more: int) -> None:
    shape = {"in_channels": c, "size": (side, side), "classes": 5}
    floor = min(light_macs(width=w, blocks=b, **shape) for w, b in LIGHT_FAMILY)

    def cost(budget: int) -> int:
        with torch.device("meta"):
            made = build_main(layout="light", max_macs=budget, **shape).settings
        return light_macs(width=made["width"], blocks=made["blocks"], **shape)

    small, large = cost(floor + low), cost(floor + low + more)
    assert floor <= small <= floor + low
    assert small <= large


@QUICK
@given(h=st.integers(1, 64), w=st.integers(1, 64), block=st.integers(1, 20), keep=st.integers(1, 20))
def test_crops_always_fit(h: int, w: int, block: int, keep: int) -> None:
    for m, kept in (crop_for((3, h, w)), nearest_crop((3, h, w), block=block, keep=min(keep, block))):
        assert h % m == w % m == 0
        assert 1 <= kept <= m
    if h % block == w % block == 0:
        assert nearest_crop((3, h, w), block=block, keep=min(keep, block)) == (block, min(keep, block))


@QUICK
@given(c=st.integers(1, 99), n=st.integers(1, 9), m=st.integers(1, 16), r=st.integers(1, 9))
def test_the_slides_convention_block_by_block(c: int, n: int, m: int, r: int) -> None:
    shape = (c, n * m, 2 * n * m)
    assert svd_macs(ir_shape=shape, rank=r) == sum(r * c for _ in range(2 * (n * m) ** 2))
    assert dct_macs(ir_shape=shape, rank=r, block=m) == pytest.approx(r * 2 * n * n * 2 * m**3)
