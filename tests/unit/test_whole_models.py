"""Whole models in the cloud: records keep apart, and a step that is refused leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from delta.bundle.manifest import Architecture
from delta.errors import ConfigError, ModelError, RequestError
from delta.methods.cloud_only import CloudOnly
from delta.methods.dp_input import DpInput
from delta.methods.schema import run_operation
from delta.methods.stepping import Stepper, StepPlan
from delta.methods.whole import WholeModel
from delta.methods.whole_half import LOGITS, TRAIN, WholeHalf
from delta.release.config import InputSpec

SHAPE = (1, 4, 4)
X = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 3])


class Centred(nn.Module):
    """Records see each other, and no layer says so."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Scaled(nn.Module):
    """One scale for a whole batch, as dynamic quantisation takes it."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().max().clamp_min(1.0)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Rooted(nn.Module):
    """Of 0 the root is 0 and the slope infinite."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs().sqrt()


class Replacing(nn.Module):
    """Puts another tensor in its buffer's place, and another one in the one that was there."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.last.add_(1)
            self.last = x.detach().mean().reshape(1)
        return x


def net(*first: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(16, 4)).eval()


def whole(module: nn.Module) -> WholeModel:
    return WholeModel.of(
        module,
        input=InputSpec(shape=SHAPE, mean=(0.0,), std=(1.0,)),
        architecture=Architecture(target="tests.unit.test_whole_models:net"),
    )


def half(module: nn.Module) -> WholeHalf:
    plan = StepPlan(steps=5, learning_rate=1e-2)
    return WholeHalf(module, shape=SHAPE, classes=4, device=torch.device("cpu"), plan=plan)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("make", [CloudOnly.bundle_of, lambda model: DpInput.bundle_of(model, epsilon=8.0)])
@pytest.mark.parametrize(
    ("first", "text"),
    [
        (nn.BatchNorm2d(1, track_running_stats=False), "module '0' normalises by its batch"),
        (Centred(), "changes with the other records"),
        (Scaled(), "changes with the other records"),
        (Noisy(), "or by chance"),
    ],
    ids=["batch norm", "centred", "scaled", "noisy"],
)
def test_a_model_in_which_records_see_each_other_is_refused(make, first, text):
    with pytest.raises(ModelError, match=text) as caught:
        make(whole(net(first)))
    assert "backbone" not in str(caught.value)


def test_models_of_apart_records_are_taken_and_left_in_the_mode_they_were_in():
    parts = [nn.BatchNorm2d(1), nn.InstanceNorm2d(1), nn.Dropout(), nn.GroupNorm(1, 1)]
    model = whole(net(*parts))
    model.module.train()
    before = state(model.module)
    assert CloudOnly.bundle_of(model).manifest.method == "cloud-only"
    assert model.module.training
    assert same(model.module, before)


BAD = {
    "NaN": (X.clone().fill_(torch.nan), Y, RequestError, "NaN or infinite"),
    "infinite": (torch.full_like(X, torch.inf), Y, RequestError, "NaN or infinite"),
    "no such label": (X, torch.tensor([0, 4, 1]), RequestError, "outside of 0 to 3"),
    "ignored label": (X, torch.full((3,), -100), RequestError, "outside of 0 to 3"),
    "variance overflows": (1e30 * X, Y, ConfigError, "statistic is not finite"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_refused_step_in_the_cloud_changes_nothing(bad):
    module = net(nn.BatchNorm2d(1))
    served, before = half(module), state(module)
    x, y, error, text = BAD[bad]
    logits = run_operation(served, LOGITS, {"x": X})["logits"]
    with pytest.raises(error, match=text):
        run_operation(served, TRAIN, {"x": x, "y": y})
    assert same(module, before)
    assert torch.equal(run_operation(served, LOGITS, {"x": X})["logits"], logits)
    fresh = half(net(nn.BatchNorm2d(1)))
    losses = [run_operation(one, TRAIN, {"x": X, "y": Y})["loss"] for one in (served, fresh)]
    assert torch.equal(*losses)


def test_a_loss_that_is_not_finite_leaves_batch_statistics_as_they_were():
    module = net(nn.BatchNorm2d(1), Replacing())
    before, kept = state(module), module[1].last
    with torch.no_grad():
        module[-1].bias[0] = before["3.bias"][0] = torch.inf
    with pytest.raises(ConfigError, match="the loss is not finite"):
        Stepper(module, StepPlan()).step(X, Y)
    assert same(module, before)
    assert module[1].last is kept
    assert not module.training


def test_a_gradient_that_is_not_finite_is_refused_before_anything_moves():
    module = net(nn.BatchNorm2d(1), Rooted())
    x = torch.zeros_like(X)
    before = state(module)
    stepper = Stepper(module, StepPlan(steps=1))
    with pytest.raises(ConfigError, match="the gradient is not finite"):
        stepper.step(x, Y)
    assert same(module, before)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert stepper.step(X, Y) > 0  # the refused step is not counted
    assert not same(module, before)
