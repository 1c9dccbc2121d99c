"""Models with every kind of linear layer that `slalom` runs, and what its tests make of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from delta.methods.whole import WholeModel
from delta.release.config import InputSpec

SHAPE = (2, 10, 8)


class Zoo(nn.Module):
    """Convolutions with strides, paddings, groups and dilations, and linear layers over several axes."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Conv2d(2, 6, 3, stride=(2, 1), padding=(1, 2))
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 9, 3, padding=1, groups=3, bias=False)
        self.dilated = nn.Conv2d(9, 4, (3, 2), padding=2, dilation=(2, 3))
        self.same = nn.Conv2d(4, 4, (2, 4), padding="same")
        self.valid = nn.Conv2d(4, 5, 2, padding="valid")
        self.point = nn.Conv2d(5, 8, 1, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.tokens = nn.Linear(8, 6)
        self.head = nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.strided(x)))
        x = torch.relu(self.grouped(x))
        x = torch.nn.functional.gelu(self.dilated(x))
        x = self.valid(x + self.same(x))
        x = self.depthwise(torch.relu_(self.point(x)))
        return self.head(torch.relu(self.tokens(x.flatten(2).transpose(1, 2))).mean(dim=1))


def records(count: int, *, seed: int = 0) -> Tensor:
    """Records of `SHAPE`."""
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def spec_of(shape: tuple[int, int, int]) -> InputSpec:
    """Records of a shape, not normalised."""
    return InputSpec(shape=shape, mean=(0.0,) * shape[0], std=(1.0,) * shape[0])


def zoo(*, seed: int = 0) -> WholeModel:
    """A seeded zoo with records to calibrate on."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = Zoo().eval()
    return WholeModel.of(module, input=spec_of(SHAPE), name="zoo", calibration=records(16, seed=99))
