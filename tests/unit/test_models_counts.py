from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from delta.decomposition import Decomposer
from delta.errors import ModelError
from delta.models import resnet18, resnet34
from delta.models.macs import count_macs, count_params, dct_macs, decomposition_macs, macs_by_module, svd_macs
from delta.models.memory import peak_memory, tensor_bytes
from delta.release.message import MessageMap
from tests.unit import models_zoo as zoo


@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (5, 3, 10, 12), 10 * 12 * 8 * 27),
        (nn.Conv2d(8, 8, 3, groups=4), (1, 8, 6, 6), 16 * 8 * 9 * 2),
        (nn.Conv2d(4, 6, 5, stride=2), (2, 4, 9, 9), 9 * 6 * 4 * 25),
        (nn.Linear(7, 11), (4, 7), 77),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)), (2, 3, 8, 8), 0),
    ],
)
def test_macs_by_hand(module: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert count_macs(module, torch.zeros(shape)) == macs


def test_attention_is_counted_through_its_fused_path_too() -> None:
    model = zoo.Patches()
    # Patches by hand: embedding, four projections, two score products of 2×2 tokens… here 4 tokens of 16.
    embed = 4 * 16 * 48
    attention = 4 * 16 * 48 + 4 * 16 * 16 + 2 * 4 * 4 * 16
    assert count_macs(model, torch.zeros(1, 3, 8, 8)) == embed + attention + 2 * 4 * 16 * 32 + 16 * 5


@pytest.mark.parametrize("build", [zoo.Branches, zoo.BranchesElsewhere])
def test_models_that_meta_tensors_cannot_run_are_counted_for_real(build) -> None:
    macs = 64 * 8 * 27 + 16 * 12 * 72 + 12 * 5
    assert count_macs(build(), torch.zeros(2, 3, 8, 8)) == macs


def test_resnets_as_published() -> None:
    with torch.device("meta"):
        small, large = resnet18(classes=100), resnet34(classes=1000, stem="imagenet")
    assert count_macs(small, torch.zeros(1, 3, 32, 32)) == 555_468_800
    assert count_params(small) == 11_220_132
    assert count_macs(large, torch.zeros(1, 3, 224, 224)) == 3_663_761_408
    assert count_params(large) == 21_797_672


def test_counts_add_up_by_module() -> None:
    with torch.device("meta"):
        model = resnet18(classes=10)
    counts = macs_by_module(model, torch.zeros(1, 3, 32, 32))
    parts = ("conv1", "layer1", "layer2", "layer3", "layer4", "fc")
    assert counts[""] == sum(counts[name] for name in parts) == 555_422_720
    shortcuts = sum(macs for name, macs in counts.items() if name.endswith("downsample"))
    assert shortcuts == 3 * 64 * 128 * 256


def test_counting_changes_nothing() -> None:
    model = zoo.Plain().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    count_macs(model, torch.randn(4, 3, 8, 8))
    assert model.training
    assert all(torch.equal(v, state[k]) and v.device.type == "cpu" for k, v in model.state_dict().items())


def test_a_model_that_does_not_run_cannot_be_counted() -> None:
    with pytest.raises(ModelError, match=r"fails on inputs \[1, 4, 8, 8\]"):
        count_macs(zoo.Plain(), torch.zeros(1, 4, 8, 8))


def test_shared_parameters_count_once() -> None:
    assert count_params(nn.ModuleList([lin := nn.Linear(3, 4), lin])) == 16


def test_the_slides_convention() -> None:
    assert svd_macs(ir_shape=(64, 32, 32), rank=8) == 524_288
    assert dct_macs(ir_shape=(64, 32, 32), rank=8, block=16) == 262_144
    assert round(svd_macs(ir_shape=(64, 56, 56), rank=8) / 1e6, 1) == 1.6
    assert round(dct_macs(ir_shape=(64, 56, 56), rank=8, block=14) / 1e6, 1) == 0.7


@pytest.mark.parametrize("basis", ["svd", "pca"])
@pytest.mark.parametrize("crop", [(4, 2), (4, 3), (2, 2)])
@pytest.mark.parametrize("kind", ["channel-mean", "projection-2", "projection-5", "all-channels", "none"])
@pytest.mark.parametrize("offload", ["residual", "principal"])
def test_decomposition_macs_are_those_that_the_decomposer_executes(basis, crop, kind, offload) -> None:
    (c, h, w), rank, (block, keep) = (6, 8, 12), 3, crop
    decomposer = Decomposer(
        channels=c,
        height=h,
        width=w,
        rank=rank,
        block=block,
        keep=keep,
        kind=basis,
        basis=torch.eye(c)[:, :rank] if basis == "pca" else None,
    )
    name, _, size = kind.partition("-") if kind.startswith("projection") else (kind, "", "")
    channels = c if offload == "residual" else rank
    if name == "none" or (size and int(size) >= channels):
        message = None
    else:
        message = MessageMap(name, channels=channels, k=int(size) if size else None)
    phi = torch.randn(2, c, h, w)  # a lone record is multiplied beside a copy of itself
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if message is None:
            parts = decomposer(phi)
        elif offload == "residual":
            parts, _ = decomposer.decompose_and_map(phi, message.weight)
        else:
            parts = decomposer(phi)
            message(parts.principal)
        decomposer.main_input(parts)
    counted = decomposition_macs(
        ir_shape=(c, h, w),
        rank=rank,
        block=block,
        keep=keep,
        basis=basis,
        k=message.k if message else 0,
        offload=offload,
    )
    once = 0  # A·U of a shared basis, one product for the whole batch
    if basis == "pca" and offload == "residual" and message is not None and message.weight is not None:
        once = message.k * c * rank
    assert 2 * counted + once == counter.get_total_flops() // 2


KIB = 1024


def test_peak_memory_by_hand() -> None:
    x = torch.zeros(256)  # 1 KiB

    def chain(x: torch.Tensor) -> torch.Tensor:
        y = x + 1  # x, y
        y = y * 2  # x, y, new y
        y = y - 1  # the first y is free by now
        return y.sum()

    assert peak_memory(chain, x) == 3 * KIB

    def keeping(x: torch.Tensor) -> list[torch.Tensor]:
        return [x + i for i in range(5)]

    assert peak_memory(keeping, x) == 6 * KIB


def test_views_and_in_place_operations_take_no_memory() -> None:
    def views(x: torch.Tensor) -> torch.Tensor:
        return x.view(16, 16).t()[:4].add_(1).unsqueeze(0)

    assert peak_memory(views, torch.zeros(256)) == KIB


def test_weights_are_not_in_the_peak_and_have_their_own_count() -> None:
    layer = nn.Linear(256, 256, bias=False)
    with torch.no_grad():
        assert peak_memory(lambda x: layer(x), torch.zeros(1, 256)) == 2 * KIB
    assert tensor_bytes([layer.weight, layer.weight.t(), layer.weight[:3]]) == 256 * KIB


def test_peak_memory_on_meta_is_the_same_and_costs_none() -> None:
    model = zoo.Plain().eval()
    with torch.no_grad():
        real = peak_memory(model, torch.zeros(1, 3, 16, 16))
        imagined = peak_memory(model.to("meta"), torch.zeros(1, 3, 16, 16, device="meta"))
    assert real > 3 * 256 * 4
    assert imagined == pytest.approx(real, rel=0.02)  # but for the scratch vectors of batch normalisation


def test_gradients_keep_activations_alive() -> None:
    model = zoo.Plain().eval()
    x = torch.zeros(1, 3, 16, 16)
    with torch.no_grad():
        inference = peak_memory(model, x)
    assert peak_memory(lambda x: model(x).sum().backward(), x) > inference
