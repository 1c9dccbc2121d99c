"""Models as users bring them: some that can be split, and one for each way in which that fails."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(a: int, b: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride=stride, padding=1), nn.BatchNorm2d(b), nn.ReLU())


class Head(nn.Sequential):
    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Plain(nn.Module):
    """Constructs without arguments: its target can be inferred."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(3, 8)
        self.second = conv(8, 12, stride=2)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


class Configured(Plain):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = Head(12, classes)


def sequential() -> nn.Sequential:
    return nn.Sequential(conv(3, 8), conv(8, 12, stride=2), Head(12))


class Skip(Plain):
    """The first stage's output passes the middle and the second by."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.second(self.middle(y))
        return self.head(z + F.avg_pool2d(y, 2).repeat(1, 2, 1, 1)[:, :12])


class LongSkip(Plain):
    """A split inside `block` is crossed; in front of it, it is not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.block = Residual(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.block(self.stem(x))))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = conv(channels, channels)
        self.b = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x))


class Branches(Plain):
    """Control flow on values in the outermost forward."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if y.mean() > 1e9:
            y = y * 2
        return self.head(self.second(y))


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:
            return x * 2
        return x + 1


class BranchesElsewhere(Plain):
    """The same control flow in a module of its own, which no trace looks into."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gate(self.second(self.first(x))))


class Functional(Plain):
    """Functional operations, the batch size, a parameter and a default argument in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, 12, 1, 1), 1.5))
        self.fc = nn.Linear(12 * 16, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n = x.shape[0]
        y = F.relu(self.first(x) * 2 - 1)
        if mask is not None:
            y = y * mask
        y = self.second(y) * self.scale
        y = F.adaptive_avg_pool2d(torch.cat([y, y], 1)[:, :12], 4)
        return self.fc(y.view(n, -1))


class Normalises(Plain):
    """Reads buffers in the outermost forward, on both sides of a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("gain", torch.full((1, 12, 1, 1), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x - self.mean)) * self.gain)


class Twice(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.again = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.again(self.again(self.first(x)))))


class TupleOut(Plain):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.second(self.first(x))
        return self.head(y), y


class DictOut(Plain):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": super().forward(x)}


class Softmax(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class LogSoftmax(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(super().forward(x), dim=1)


class Patches(nn.Module):
    """A little transformer: `[n, 3, 8, 8]` becomes tokens at once."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.block(tokens)).mean(1))


class Centre(nn.Module):
    """Mixes the records of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Mixing(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.centre = Centre()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.centre(self.first(x))))


class MixingInline(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.head(self.second(y - y.mean(0, keepdim=True)))


class FixedBatch(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).view(3, 12, 4, 4))


class AlwaysDrops(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.second(self.first(x)), 0.5, training=True))


class AsksMode(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(F.dropout(self.first(x), 0.5, training=self.training)))


class Overflow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x - x)


class NotFinite(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.overflow = Overflow()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.overflow(self.first(x))))


class InPlace(Plain):
    """An operation whose result is dropped changes the tensor all the same."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y.add_(1)
        return self.head(self.second(y))


class Tied(Plain):
    """One parameter on both sides of the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.third = conv(8, 8)
        self.third[0].weight = nn.Parameter(torch.randn(8, 8, 3, 3))
        self.fourth = conv(8, 8)
        self.fourth[0].weight = self.third[0].weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.fourth(self.third(self.first(x)))))


class Unused(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.spare = conv(8, 8)
        self.layers = nn.ModuleList([conv(8, 8), conv(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for layer in self.layers:
            y = layer(y)
        return self.head(self.second(y))


class TwoInputs(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.merge = nn.Bilinear(8, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.merge(y.permute(0, 2, 3, 1), y.tanh().permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.second(z))


def not_a_module() -> int:
    return 3


def failing(**_: object) -> nn.Module:
    raise RuntimeError("first line\nsecond line")


def configured(classes: int) -> nn.Module:
    return Configured(classes)
